"""Real mounts of every kind of file system, over a raw file served by a real server."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.mounting import ImageMaker, MountBench, private_dev

from hybrid.fuse.loop import uses_direct_io


def super_options(bench: MountBench) -> str:
    (entry,) = [entry for entry in bench.entries() if entry.mount_point == str(bench.mountpoint)]
    return entry.options


@pytest.mark.parametrize(
    ("kind", "fstype"),
    [
        ("ext4", "ext4"),
        ("ext4-nojournal", "ext4"),
        ("ext3", "ext3"),
        ("ext2", "ext2"),
        ("xfs", "xfs"),
        ("squashfs", "squashfs"),
        ("btrfs", "btrfs"),
    ],
)
def test_a_file_system_is_mounted_through_a_loop_device(
    bench: MountBench, images: ImageMaker, kind: str, fstype: str
) -> None:
    record = bench.mount(images.get(kind), bench.mountpoint)
    assert record["fstype"] == fstype
    assert re.fullmatch(r"/dev/loop\d+", record["loop"])
    assert uses_direct_io(Path(record["loop"]))
    images.check_tree(bench.mountpoint)
    with pytest.raises(OSError, match="Read-only"):
        (bench.mountpoint / "new").touch()
    assert super_options(bench).split(",")[0] == "ro"
    assert bench.succeed("umount", bench.mountpoint) == ""
    assert bench.leftovers() == []


def test_a_clean_ext4_journal_needs_no_option(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    assert record["options"] == ""
    assert "norecovery" not in super_options(bench)
    bench.succeed("umount", bench.mountpoint)


def test_a_dirty_ext4_journal_is_left_out_with_a_notice(
    bench: MountBench, images: ImageMaker
) -> None:
    done = bench.run("-v", "mount", images.get("ext4-dirty"), bench.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "journal is dirty" in done.stderr
    assert "norecovery" in super_options(bench)  # the kernel's other name for noload
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4", "erofs"])
def test_the_same_image_can_be_mounted_twice(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    second = bench.directory / "second"
    second.mkdir()
    for mountpoint in (bench.mountpoint, second):
        bench.mount(images.get(kind), mountpoint)
    for mountpoint in (bench.mountpoint, second):
        images.check_tree(mountpoint)
        bench.succeed("umount", mountpoint)
    assert bench.leftovers() == []


def kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


@pytest.mark.skipif(kernel_version() < (6, 12), reason="erofs from a file needs Linux 6.12")
def test_erofs_is_mounted_from_the_file_without_a_loop_device(
    bench: MountBench, images: ImageMaker
) -> None:
    before = loops_in_use()
    record = bench.mount(images.get("erofs"), bench.mountpoint)
    assert loops_in_use() == before
    assert record["loop"] is None
    assert {entry.source for entry in bench.entries() if entry.fstype == "erofs"} == {
        record["file"]
    }
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", record["id"])
    assert bench.leftovers() == []


def loops_in_use() -> set[str]:
    """Loop devices over files of hybrid; other programs may use some meanwhile."""
    done = subprocess.run(
        ["losetup", "-ln", "-O", "NAME,BACK-FILE"], capture_output=True, text=True, check=True
    )
    return {line for line in done.stdout.splitlines() if line.endswith("/fuse/disk")}


def test_a_disk_without_file_system_says_that_it_can_be_exposed(
    bench: MountBench, images: ImageMaker
) -> None:
    line = bench.fail("mount", images.get("none"), bench.mountpoint, code=7)
    assert "no file system that hybrid knows" in line
    assert "--no-mount" in line
    assert bench.leftovers() == []
    record = bench.mount(images.get("none"))
    assert Path(record["file"]).read_bytes() == images.get("none").read_bytes()
    bench.succeed("umount", record["id"])


def test_an_unreadable_superblock_names_the_reason(bench: MountBench, images: ImageMaker) -> None:
    line = bench.fail("mount", images.get("ext4"), bench.mountpoint, "--error-at", "0-4096", code=7)
    assert "CRC mismatch" in line
    assert bench.leftovers() == []


def test_a_failed_mount_names_what_the_server_met(bench: MountBench, images: ImageMaker) -> None:
    # Block 0 reads well for the detection; the group descriptors and inodes behind it do not.
    path = images.get("ext4")
    line = bench.fail("mount", path, bench.mountpoint, "--error-at", f"131072-{24 << 20}", code=7)
    assert "cannot mount the ext4 file system" in line
    assert "CRC mismatch" in line
    assert bench.leftovers() == []


def test_no_loop_control_is_one_line(bench: MountBench, images: ImageMaker) -> None:
    line = bench.fail(
        "mount", images.get("ext4"), bench.mountpoint, code=10, prefix=private_dev("fuse")
    )
    assert "/dev/loop-control" in line
    bench.assert_clean()


def test_a_missing_loop_node_is_made(bench: MountBench, images: ImageMaker) -> None:
    script = 'set -e; "$@" >/dev/null; cat "$MOUNTPOINT/hello"; set -- ${DONE}; "$@"; ls /dev'
    bench.environment["MOUNTPOINT"] = str(bench.mountpoint)
    bench.environment["DONE"] = " ".join(bench.command("umount", bench.mountpoint))
    prefix = (*private_dev("fuse", "loop-control"), "sh", "-c", script, "sh")
    done = bench.run("mount", images.get("ext4"), bench.mountpoint, prefix=prefix)
    assert done.returncode == 0, done.stderr
    first, *nodes = done.stdout.split()
    assert first == "hello"
    assert any(re.fullmatch(r"loop\d+", name) for name in nodes)


def test_no_fuse_device_is_one_line(bench: MountBench, images: ImageMaker) -> None:
    line = bench.fail(
        "mount", images.get("ext4"), bench.mountpoint, code=10, prefix=private_dev("loop-control")
    )
    assert "cannot open /dev/fuse" in line
    assert "modprobe fuse" in line
