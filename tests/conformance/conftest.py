"""The front end under test: fuse on this machine, tcmu in the guest."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exposed import exposed
from support.mounting import images

from hybrid.mount.state import MountRecord

__all__ = ["images"]

SIZE = 6 * (1 << 20) + 512
"""Bytes of the disk: no multiple of a page, so that its end is odd."""


@pytest.fixture(scope="session", params=["fuse", pytest.param("tcmu", marks=pytest.mark.guest)])
def mode(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    name: str = request.param
    return name


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One state directory for all: disks are shared between tests."""
    directory = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_STATE_DIR", str(directory))
        yield directory
    left = list(directory.iterdir())
    assert left == [], "state is left behind"


@pytest.fixture(scope="session")
def truth() -> bytes:
    return random.Random(11).randbytes(SIZE)


@pytest.fixture(scope="session")
def raw(truth: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "random.img"
    path.write_bytes(truth)
    return path


@pytest.fixture(scope="module")
def disk(mode: str, raw: Path) -> Iterator[MountRecord]:
    """The random disk, exposed and not mounted."""
    with exposed(raw, mode) as record:
        yield record
