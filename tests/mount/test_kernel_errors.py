"""What mount(2) answers, as errors for people; and the way of erofs on kernels before 6.12."""

import errno
import os
from pathlib import Path

import pytest
from support.mounting import ImageMaker, MountBench

from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    MountPointError,
    PermissionNeededError,
    SystemSupportError,
)
from hybrid.fuse.loop import attach_loop
from hybrid.mount import kernel
from hybrid.mount.channel import Ready
from hybrid.mount.syscalls import umount2

EXT3 = Ready(512, "", "", False, "ext3", ["ext3", "ext4"], "noload", "", False)
EROFS = Ready(512, "", "", False, "erofs", ["erofs"], "", "", True)
DEVICE, PLACE = Path("/dev/null"), Path("/mnt")


class Answers:
    """Stands in for mount(2): one errno for each driver, 0 for success."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
        self.tried: list[str] = []
        self._numbers = numbers
        monkeypatch.setattr(kernel, "mount", self._mount)

    def _mount(self, source: Path, target: Path, fstype: str, flags: int, options: str) -> None:
        self.tried.append(fstype)
        if number := self._numbers[fstype]:
            raise OSError(number, os.strerror(number))


def test_a_driver_that_the_kernel_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, ext3=errno.ENODEV, ext4=0)
    kernel.mount_device(DEVICE, PLACE, EXT3)
    assert answers.tried == ["ext3", "ext4"]


def test_a_file_system_that_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, ext3=errno.ENODEV, ext4=errno.ENODEV)
    with pytest.raises(SystemSupportError, match="this kernel has no ext3 file system") as caught:
        kernel.mount_device(DEVICE, PLACE, EXT3)
    assert "--no-mount" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EBUSY, BusyError),
        (errno.EEXIST, BusyError),
        (errno.EPERM, PermissionNeededError),
        (errno.ENOENT, MountPointError),
        (errno.EINVAL, FormatError),
        (errno.EIO, FormatError),
    ],
)
def test_other_answers_end_the_attempt(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[HybridError]
) -> None:
    answers = Answers(monkeypatch, ext3=number, ext4=0)
    with pytest.raises(error):
        kernel.mount_device(DEVICE, PLACE, EXT3)
    assert answers.tried == ["ext3"]


@pytest.mark.parametrize("number", [errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_that_wants_a_block_device_gets_one(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Answers(monkeypatch, erofs=number)
    assert kernel.mount_file(DEVICE, PLACE, EROFS) is False


def test_erofs_over_a_loop_device(bench: MountBench, images: ImageMaker) -> None:
    loop = attach_loop(images.get("erofs"))
    kernel.mount_device(loop.path, bench.mountpoint, EROFS)
    loop.close()
    images.check_tree(bench.mountpoint)
    umount2(bench.mountpoint)
