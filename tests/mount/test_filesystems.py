"""Recognising file systems by what the mkfs programs write, and by nothing at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mounting import ImageMaker

from hybrid.mount.filesystems import HEAD_BYTES, DetectedFilesystem, detect


def head_of(images: ImageMaker, kind: str) -> bytes:
    with images.get(kind).open("rb") as file:
        return file.read(HEAD_BYTES)


@pytest.mark.parametrize(
    ("kind", "fstype", "drivers", "options"),
    [
        ("ext4", "ext4", ("ext4",), ""),
        ("ext4-nojournal", "ext4", ("ext4",), ""),
        ("ext4-dirty", "ext4", ("ext4",), "noload"),
        ("ext3", "ext3", ("ext3", "ext4"), ""),
        ("ext2", "ext2", ("ext2", "ext4"), ""),
        ("xfs", "xfs", ("xfs",), "norecovery,nouuid"),
        ("erofs", "erofs", ("erofs",), ""),
        ("squashfs", "squashfs", ("squashfs",), ""),
        ("btrfs", "btrfs", ("btrfs",), ""),
    ],
)
def test_what_mkfs_makes(
    images: ImageMaker, kind: str, fstype: str, drivers: tuple[str, ...], options: str
) -> None:
    found = detect(memoryview(head_of(images, kind)))
    assert found is not None
    assert (found.fstype, found.drivers, found.options) == (fstype, drivers, options)
    assert bool(found.notice) == (options == "noload")
    assert found.mounts_files == (fstype == "erofs")


@pytest.mark.parametrize(
    ("kind", "can", "lacks", "check", "options"),
    [
        ("ext4", True, False, False, ""),
        ("ext4-nojournal", True, True, False, ""),
        ("ext4-dirty", True, False, True, ""),
        ("ext3", True, False, False, ""),
        ("ext2", True, True, False, ""),
        ("xfs", True, False, False, "nouuid"),
        ("erofs", False, False, False, ""),
        ("squashfs", False, False, False, ""),
        ("btrfs", True, False, False, ""),
    ],
)
def test_what_writing_takes(
    images: ImageMaker, kind: str, can: bool, lacks: bool, check: bool, options: str
) -> None:
    found = detect(head_of(images, kind))
    assert found is not None
    assert (found.can_be_written, found.lacks_journal, found.wants_check) == (can, lacks, check)
    assert found.writing_options == options
    assert found.is_ext == kind.startswith("ext")


@pytest.mark.parametrize("state", [0, 2, 3, 5])
def test_an_ext4_with_errors_or_in_use_is_checked(images: ImageMaker, state: int) -> None:
    head = bytearray(head_of(images, "ext4"))
    head[1024 + 58 : 1024 + 60] = state.to_bytes(2, "little")
    found = detect(head)
    assert found is not None
    assert found.wants_check


def test_a_btrfs_with_a_log_tree_is_mounted_without_it(images: ImageMaker) -> None:
    head = bytearray(head_of(images, "btrfs"))
    head[65536 + 96 : 65536 + 104] = (123456).to_bytes(8, "little")
    found = detect(head)
    assert found is not None
    assert found.options == "rescue=nologreplay"
    assert "log tree" in found.notice


def test_random_bytes_are_nothing(images: ImageMaker) -> None:
    assert detect(head_of(images, "none")) is None


@given(st.binary(max_size=2048), st.sampled_from([b"", b"XFS", b"hsq", b"\xe2\xe1\xf5"]))
@settings(derandomize=True, max_examples=200)
def test_short_heads_are_no_error(data: bytes, start: bytes) -> None:
    found = detect(start + data)
    assert found is None or isinstance(found, DetectedFilesystem)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "erofs", "squashfs", "btrfs"])
def test_every_cut_of_a_head_is_recognised_or_nothing(images: ImageMaker, kind: str) -> None:
    head = head_of(images, kind)
    for length in (0, 3, 4, 1023, 1024, 1027, 1080, 1127, 1128, 65536, 65600, 65663, 65664):
        found = detect(head[:length])
        assert found is None or found.fstype == kind
