"""Directories for changes: made, and put back as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid.core.upper_directory import UpperDirectory
from hybrid.core.upper_manifest import Manifest
from hybrid.errors import BusyError, UsageError
from hybrid.mount.changes import Changes
from hybrid.mount.upper_place import UpperPlace, data_root, plan_changes


@pytest.fixture
def room(tmp_path: Path) -> Path:
    path = tmp_path / "room"
    path.mkdir()
    return path


def create(directory: Path, token: str) -> UpperDirectory:
    manifest = Manifest("image", "", "", 1 << 20, origin={"token": token})
    return UpperDirectory.create(directory, manifest)


def test_what_was_made_is_taken_back(room: Path) -> None:
    place = UpperPlace(room / "a" / "b", "t")
    place.make()
    create(place.directory, "t")
    assert place.directory.stat().st_mode & 0o777 == 0o700
    place.take_back()
    assert list(room.iterdir()) == []


def test_an_empty_directory_is_empty_again(room: Path) -> None:
    place = UpperPlace(room, "t")
    place.make()
    create(room, "t")
    place.take_back()
    assert list(room.iterdir()) == []


def test_what_was_there_stays(room: Path) -> None:
    create(room, "t")
    before = sorted(room.iterdir())
    place = UpperPlace(room, "t")
    place.make()
    place.take_back()
    assert sorted(room.iterdir()) == before


def test_what_another_command_made_meanwhile_stays(room: Path) -> None:
    place = UpperPlace(room / "new", "t")
    place.make()
    create(place.directory, "another")
    place.take_back()
    assert UpperDirectory(place.directory).manifest.origin == {"token": "another"}


@pytest.mark.trio
async def test_a_layer_in_use_stays(room: Path) -> None:
    place = UpperPlace(room, "t")
    place.make()
    disk = await create(room, "t").open(None, "disk")
    place.take_back()
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):
        create(room, "other")
    disk.pwrite_nowait(0, b"x" * 512)
    await disk.aclose()
    disk = await UpperDirectory(room).open(None, "disk")
    assert await disk.pread(0, 512) == b"x" * 512
    await disk.aclose()


def test_places_that_make_no_sense(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(UsageError, match="is no directory"):
            UpperPlace(path, "t").make()
    (tmp_path / "link").symlink_to(tmp_path)
    changes = Changes(str(tmp_path / "link" / "mnt" / "upper"))
    with pytest.raises(UsageError, match="below the mount point"):
        changes.check_outside(tmp_path / "mnt")
    changes.check_outside(tmp_path / "mn")
    Changes().check_outside(Path("/"))


def test_the_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRID_DATA_DIR", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("HYBRID_DATA_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert data_root() == Path("/var/lib/hybrid")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert data_root() == Path("/x/hybrid")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_root() == Path.home() / ".local/share/hybrid"
    first, second = (plan_changes("oci:x", None, 0).name for _ in range(2))
    assert first != second
