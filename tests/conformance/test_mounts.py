"""Mounted images: the right tree, twice, while busy, and nothing left."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exposed import expose, exposed, reap
from support.mounting import ImageMaker

from hybrid.errors import BusyError, FormatError
from hybrid.mount.detach import detach
from hybrid.mount.listing import list_mounts
from hybrid.mount.mountinfo import read_mountinfo, top_mount

FILESYSTEMS = ("ext4", "ext4-dirty", "ext2", "xfs", "erofs", "squashfs")


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    assert top_mount(read_mountinfo(), str(path)) is None


@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_the_tree_is_right(mode: str, images: ImageMaker, mountpoint: Path, kind: str) -> None:
    record = expose(images.get(kind), mode, mountpoint)
    images.check_tree(mountpoint)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (mountpoint / "new").touch()
    assert detach(record)
    reap(record)
    assert record.has_ended()


def test_again_and_twice_at_once(mode: str, images: ImageMaker, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
    for _ in range(2):
        with (
            exposed(images.get("ext4"), mode, places[0]),
            exposed(images.get("ext4"), mode, places[1]),
        ):
            for place in places:
                images.check_tree(place)
            assert [mount.state for mount in list_mounts()] == ["ready", "ready"]


def test_a_mount_in_use_stays(mode: str, images: ImageMaker, mountpoint: Path) -> None:
    with exposed(images.get("ext4"), mode, mountpoint) as record:
        with subprocess.Popen(["sleep", "60"], cwd=mountpoint) as user:
            with pytest.raises(BusyError, match=rf"in use by sleep \(pid {user.pid}\)"):
                detach(record)
            user.kill()
        images.check_tree(mountpoint)
        assert detach(record)


def test_a_plain_umount_takes_all_away(mode: str, images: ImageMaker, mountpoint: Path) -> None:
    record = expose(images.get("ext4"), mode, mountpoint)
    subprocess.run(["umount", mountpoint], check=True)
    os.waitpid(record.pid, 0)
    assert not record.directory.exists()


def test_what_holds_no_file_system_is_undone(
    mode: str, images: ImageMaker, mountpoint: Path
) -> None:
    with pytest.raises(FormatError, match="no file system"):
        expose(images.get("none"), mode, mountpoint)
    assert list_mounts() == []
