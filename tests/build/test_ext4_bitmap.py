"""The free blocks of real ext4 file systems, against what dumpe2fs says; and damaged ones."""

from __future__ import annotations

import contextlib
import random
import subprocess
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ext4_images

from hybrid.build import ext4_journal
from hybrid.build.ext4_bitmap import CannotTellError, Geometry
from hybrid.build.free_space import find_free_space
from hybrid.build.runs import Runs
from hybrid.core.device import SECTOR

SHAPES = {
    "usual": ("", "64M"),
    "several groups": ("-b 4096 -g 1024", "64M"),
    "no flex_bg": ("-b 4096 -g 2048 -O ^flex_bg", "64M"),
    "32 bit": ("-O ^64bit", "300M"),
    "no journal": ("-O ^has_journal", "300M"),
    "1k blocks": ("-b 1024", "100M"),
    "2k blocks": ("-b 2048", "100M"),
    "1k, 32 bit, no csum": ("-b 1024 -O ^64bit,^metadata_csum,^resize_inode", "100M"),
    "gdt_csum": ("-O ^metadata_csum,uninit_bg -g 2048", "100M"),
    "no checksums": ("-O ^metadata_csum,^uninit_bg", "300M"),
    "sparse_super2": ("-O sparse_super2 -g 2048", "100M"),
    "no sparse_super": ("-b 1024 -O ^sparse_super,^resize_inode -g 1024", "40M"),
    "checksum seed": ("-O metadata_csum_seed", "64M"),
    "odd end": ("-g 1024", "41M"),
    "large": ("", "70G"),
}


def found_in(path: Path, size: int = 0) -> Runs | None:
    with path.open("rb") as file:

        async def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            data = file.read(length)
            assert len(data) == length
            return data

        return trio.run(find_free_space, read, size or path.stat().st_size)


def reason(path: Path, size: int = 0) -> str:
    with pytest.raises(CannotTellError) as caught:
        found_in(path, size)
    return str(caught.value)


def used_up(path: Path, seed: int) -> None:
    """Files, some of which are removed again: holes of all sizes."""
    numbers = random.Random(seed)
    content = path.with_name("content")
    names = [f"f{number}" for number in range(20)]
    commands = []
    for number, name in enumerate(names):
        size = numbers.choice([100, 5000, 70_000, 1_000_000])
        source = content.with_name(f"content{number}")
        source.write_bytes(numbers.randbytes(size))
        commands.append(f"write {source} {name}")
    commands += [f"rm {name}" for name in numbers.sample(names, 10)]
    ext4_images.fill(path, *commands)


@pytest.mark.parametrize("shape", SHAPES)
def test_free_blocks_are_those_of_dumpe2fs(shape: str, tmp_path: Path) -> None:
    options, size = SHAPES[shape]
    path = ext4_images.make(tmp_path / "disk", options, size)
    for seed in (None, 1):
        if seed is not None:
            used_up(path, seed)
        wanted = Runs(sorted(ext4_images.free_sectors(path)))
        wanted = wanted.union(Runs(sorted(ext4_images.journal_sectors(path))))
        found = found_in(path)
        assert found == wanted
        assert found
        assert found.sectors() * SECTOR < path.stat().st_size


@pytest.mark.parametrize("kind", ["ext2", "ext3"])
def test_its_ancestors(kind: str, tmp_path: Path) -> None:
    path = ext4_images.make(tmp_path / "disk", kind=kind)
    used_up(path, 2)
    assert found_in(path) == Runs(sorted(ext4_images.free_sectors(path)))


def test_a_journal_that_is_needed(tmp_path: Path) -> None:
    """A file system that is clean by its own account, with a log that begins somewhere."""
    path = ext4_images.make(tmp_path / "disk", "-b 4096")
    (first, _), *_ = sorted(ext4_images.journal_sectors(path))
    free = Runs(sorted(ext4_images.free_sectors(path)))
    disk = bytearray(path.read_bytes())
    superblock = first * SECTOR - 4096
    assert disk[superblock : superblock + 4] == b"\xc0\x3b\x39\x98"
    for offset, value in ((28, b"\0\0\0\1"), (0, b"\0"), (4, b"\0\0\0\3")):
        changed = disk[:]
        changed[superblock + offset : superblock + offset + len(value)] = value
        path.write_bytes(changed)
        assert found_in(path) == free


@given(st.binary(min_size=128, max_size=128), st.booleans())
def test_hostile_journal_inodes(inode: bytes, plausible: bool) -> None:
    block = bytearray(inode)
    if plausible:
        block[0:2] = (0x8180).to_bytes(2, "little")
        block[32:36] = (0x80000).to_bytes(4, "little")
        block[40:48] = b"\x0a\xf3\1\0\4\0\0\0"
        block[52:56] = bytes(4)
    geometry = Geometry(4096, 1000, 0, 32768, 1, 64, 0, True, None, None, False)
    for first, end in ext4_journal.journal_extents(block, geometry):
        assert 0 < first < end <= 1000


def test_what_it_does_not_understand(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    ext4_images.make(path, "-O bigalloc")
    assert "bigalloc" in reason(path)
    ext4_images.make(path, "-O meta_bg,^resize_inode")
    assert "meta_bg" in reason(path)
    ext4_images.make(path)
    ext4_images.fill(path, "ssv state 0")
    assert "not unmounted cleanly" in reason(path)
    ext4_images.make(path)
    ext4_images.fill(path, "ssv feature_incompat 0x2c6")
    assert "journal was not replayed" in reason(path)
    ext4_images.make(path)
    ext4_images.fill(path, "ssv feature_incompat 0x402c2")
    assert "does not know" in reason(path)
    ext4_images.make(path, size="64M")
    assert "ends before that" in reason(path, size=32 << 20)


def test_other_disks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for content in (b"", bytes(1024), bytes(4096), b"x" * 4096):
        path.write_bytes(content)
        assert found_in(path) is None
    subprocess.run(["mkfs.xfs", "-q", "-d", f"file,name={path},size=300m"], check=True)
    assert found_in(path) is None


class Small:
    """A file system, and the places of its superblock, descriptors and first block bitmap."""

    def __init__(self, directory: Path) -> None:
        path = ext4_images.make(directory / "disk", "-g 1024 -N 64", "16M")
        used_up(path, 3)
        self.disk = path.read_bytes()
        self.free = found_in(path)
        bitmap = int.from_bytes(self.disk[4096:4100], "little") * 4096
        self.places = [
            *range(1024, 2048), *range(4096, 4096 + 4 * 64), *range(bitmap, bitmap + 1024 // 8),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


@settings(max_examples=300)
@given(st.integers(0, 1024 + 256 + 128 - 1), st.integers(0, 7))
def test_damaged_metadata(small: Small, number: int, bit: int) -> None:
    """The right answer, or that it cannot be told: checksums see every flipped bit."""
    place = small.places[number]
    flipped = bytes([small.disk[place] ^ 1 << bit])

    async def read(offset: int, length: int) -> bytes:
        assert offset + length <= len(small.disk)
        data = small.disk[offset : offset + length]
        if offset <= place < offset + length:
            data = data[: place - offset] + flipped + data[place - offset + 1 :]
        return data

    async def look() -> Runs | None:
        return await find_free_space(read, len(small.disk))

    with contextlib.suppress(CannotTellError):
        found = trio.run(look)
        assert found == small.free or place - 1024 in (56, 57)


@given(st.binary(min_size=1024, max_size=1024), st.booleans())
def test_hostile_superblocks(superblock: bytes, plain: bool) -> None:
    """Numbers of strangers: no endless loop, no memory, no read beyond the disk."""
    block = bytearray(superblock)
    block[56:58] = b"\x53\xef"
    block[58:60] = b"\1\0"
    if plain:
        block[92:104] = bytes(12)
        block[24:28] = (block[24] % 7).to_bytes(4, "little")
    disk = bytes(1024) + bytes(block) + bytes(64 << 10)

    async def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(disk)
        return disk[offset : offset + length]

    async def look() -> Runs | None:
        return await find_free_space(read, len(disk))

    with contextlib.suppress(CannotTellError):
        trio.run(look)
