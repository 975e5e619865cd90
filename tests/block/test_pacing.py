"""How long a busy server looks and when it lets others run."""

from __future__ import annotations

import os

import pytest

from hybrid.block.pacing import Pacing


@pytest.mark.parametrize(("cores", "looks"), [({0}, False), ({0, 1}, True)])
async def test_a_single_core_is_left_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], looks: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    pacing = Pacing(None)
    await pacing.measure()
    assert (pacing.look_ns >= 50_000) is looks


async def test_a_time_that_was_asked_for_is_not_measured() -> None:
    pacing = Pacing(7)
    await pacing.measure()
    assert pacing.look_ns == 7
