"""The two implementations of runs of blocks, for tests that hold for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hybrid.core import zblocks, zblocks_pure
from hybrid.core.zblocks import Implementation

IMPLEMENTATIONS = ("compiled", "python")


def implementation(name: str) -> Implementation:
    """One of IMPLEMENTATIONS. A missing compiled one is a failure: tools/setup builds it."""
    if name == "python":
        return zblocks_pure
    compiled = zblocks.find_compiled()
    if compiled is None:
        pytest.fail("native/ is not compiled, half of these tests cannot run: see tools/setup")
    return compiled


@contextmanager
def using(name: str) -> Iterator[None]:
    """Have the product use this one, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zblocks, "active", implementation(name))
        yield
