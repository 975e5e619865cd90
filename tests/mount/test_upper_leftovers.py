"""Uppers of mounts that never came to be: found, and removed only if nobody can want them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid.core.upper_directory import UpperDirectory, exclusive
from hybrid.core.upper_manifest import Manifest
from hybrid.errors import BusyError
from hybrid.mount.leftover import YOUNG_SECONDS, Leftover
from hybrid.mount.listing import MountStatus
from hybrid.mount.state import MountRecord
from hybrid.mount.upper_leftovers import find_uppers
from hybrid.mount.upper_place import plan_changes, uppers_root

NAME = "0123abcd"
SECTOR = 512


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRID_DATA_DIR", str(tmp_path / "data"))
    return uppers_root()


def begin(name: str = NAME) -> Path:
    """What a command makes before its server is there."""
    directory = uppers_root() / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700)
    return directory


def make_old(directory: Path) -> None:
    then = time.time() - YOUNG_SECONDS - 1
    os.utime(directory, (then, then))


def find(*mounts: MountStatus) -> list[Leftover]:
    return list(find_uppers(mounts))


def create(directory: Path) -> UpperDirectory:
    return UpperDirectory.create(directory, Manifest("image:v1", "", "", 1 << 20))


def test_the_place_that_a_command_chooses_is_one_that_is_looked_at(root: Path) -> None:
    assert find() == []
    place = plan_changes("oci:x:y", None, 0).place
    place.make()
    directory = Path(place.upper)
    assert find() == []
    make_old(directory)
    (left,) = find()
    assert (left.kind, left.name) == ("upper", str(directory))
    assert left.remove is not None
    left.remove()
    assert list(root.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from hybrid.core import upper, upper_directory, upper_manifest
from hybrid.core.storage import Storage

class Dying(Storage):
    steps = int(sys.argv[2])

def dying(name):
    done = getattr(Storage, name)
    def step(self, *arguments, **options):
        if not Dying.steps:
            os.kill(os.getpid(), signal.SIGKILL)
        Dying.steps -= 1
        return done(self, *arguments, **options)
    return step

for name in ("create", "sync_directory", "remove", "replace"):
    setattr(Dying, name, dying(name))
manifest = upper_manifest.Manifest("image", "", "", 1 << 20)
upper_directory.UpperDirectory.create(Path(sys.argv[1]), manifest, Dying())
"""


def test_killed_at_each_step(root: Path) -> None:
    """With kill -9, as a command and its server are when memory runs out."""
    finished = 0
    for steps in range(20):
        directory = begin()
        command = [sys.executable, "-c", KILLED, str(directory), str(steps)]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        make_old(directory)
        (left,) = find()
        if left.remove is not None:
            assert not finished
            left.remove()
            assert not directory.exists()
            continue
        finished += 1
        assert left.text.startswith(f"nothing was ever written to {directory}, the upper of")
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
        if not code:
            break
    assert 2 <= finished < steps


async def test_an_upper_that_was_written_to_is_none_of_our_business(root: Path) -> None:
    disk = await create(begin()).open(None, "disk")
    make_old(disk.directory.path)
    assert find() == []  # in use
    disk.pwrite_nowait(0, b"x" * SECTOR)
    await disk.aclose()
    make_old(disk.directory.path)
    assert find() == []


async def test_an_upper_that_was_not_written_to_is_told_of(root: Path) -> None:
    await (await create(begin()).open(None, "disk")).aclose()
    make_old(root / NAME)
    (left,) = find()
    assert left.remove is None
    assert left.text.endswith("the upper of a mount of image:v1")


async def test_data_without_a_manifest_is_kept(root: Path) -> None:
    disk = await create(begin()).open(None, "disk")
    disk.pwrite_nowait(0, b"x" * SECTOR)
    await disk.aclose()
    (root / NAME / "upper.json").unlink()
    make_old(root / NAME)
    (left,) = find()
    assert left.remove is None
    assert "has no upper.json, but there is something in it" in left.text


@pytest.mark.parametrize("kind", ["file", "directory", "link", "other"])
def test_what_somebody_put_there_is_kept(root: Path, kind: str) -> None:
    directory = begin()
    stranger = directory / ("writable_data" if kind != "other" else "notes")
    if kind == "directory":
        stranger.mkdir()
    elif kind == "link":
        stranger.symlink_to("/etc/passwd")
    else:
        stranger.write_bytes(b"x" * (4097 if kind == "file" else 1))
    make_old(directory)
    (left,) = find()
    assert left.remove is None
    assert stranger.exists() or stranger.is_symlink()


def test_what_somebody_made_by_hand_is_not_looked_at(root: Path) -> None:
    for name in ("mine", "0123ABCD", "0123abcde", "01234567"):
        directory = begin(name)
        if name == "01234567":
            directory.chmod(0o755)
        make_old(directory)
    (root / "89abcdef").touch(mode=0o700)
    (root / "89abcdee").symlink_to(root / "mine")
    for path in (root / "89abcdef", root / "89abcdee"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert find() == []


@pytest.mark.parametrize(
    ("state", "ready", "count"),
    [("starting", False, 0), ("dead", True, 0), ("stopped", False, 0), ("dead", False, 1)],
)
def test_what_a_mount_may_still_use_is_not_touched(
    root: Path, state: str, ready: bool, count: int
) -> None:
    directory = begin()
    make_old(directory)
    record = MountRecord(Path("/x"), "x", upper=str(directory), ready=ready)
    assert len(find(MountStatus(record, state, None))) == count


def test_what_comes_to_be_used_meanwhile_is_not_removed(root: Path) -> None:
    directory = begin()
    make_old(directory)
    (left,) = find()
    assert left.remove is not None
    with exclusive(directory):
        assert find() == []
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):
            left.remove()
    create(directory)
    with pytest.raises(BusyError):
        left.remove()
    UpperDirectory(directory)


def test_what_is_gone_already_is_no_error(root: Path) -> None:
    directory = begin()
    make_old(directory)
    (left,) = find()
    directory.rmdir()
    assert left.remove is not None
    left.remove()
