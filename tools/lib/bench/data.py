"""The disk that is read: an ext4 full of files of this machine, and three-layer images of it.

The files are taken in a fixed order, so that two machines with the same packages have the same
disk. It is kept in the user's cache directory, since making it takes longer than reading it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layers import BLOCK, Change, LayerFile, differences, write_config, write_layer

ALGORITHMS = ("lz4", "zstd")
DISK_SIZE = 320 << 20
_FILES_SIZE = 290 << 20
_LARGEST_FILE = 24 << 20
_DISK = "disk.raw"
_VERSION = "2"
"""To be changed with anything that changes the data."""
_CORPUS = ("/usr/lib/python3.11", "/usr/lib/gcc", "/usr/include", "/usr/bin", "/usr/share/doc")
_UUID = "0c7a2d52-93b0-4d0f-9d0a-61d86a7d9a10"
_EXTENT_BLOCKS = 24
"""A container build writes a file at a time: extents of 4 to 96 KiB."""
_UPPER_SHARE = 0.1
"""The part of the disk that each upper layer holds."""


@dataclass(frozen=True)
class Data:
    """Files of one run. ``where`` is the type of the file system that they lie on."""

    directory: Path
    where: str
    image_bytes: dict[str, int]
    """Bytes of the three layers together, by algorithm."""

    @property
    def disk(self) -> Path:
        return self.directory / _DISK

    def config(self, algorithm: str) -> Path:
        return self.directory / f"{algorithm}.v1.json"

    def layers(self, algorithm: str) -> list[Path]:
        return [self.directory / f"{algorithm}-{number}.tar" for number in (1, 2, 3)]


@contextlib.contextmanager
def prepared_data(
    algorithms: Sequence[str] = ALGORITHMS, *, with_disk: bool = True
) -> Iterator[Data]:
    """The data, as far as wanted, copied to memory where there is room: no disk is measured."""
    kept = kept_data()
    wanted = [path for path in kept.iterdir() if path.stem.partition("-")[0] in algorithms]
    if with_disk:
        wanted.append(kept / _DISK)
    size = sum(path.stat().st_size for path in wanted)
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2 * size:
        yield _data_in(kept, algorithms)
        return
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir=memory) as name:
        for path in wanted:
            shutil.copy(path, name)
        yield _data_in(Path(name), algorithms)


def _data_in(directory: Path, algorithms: Sequence[str]) -> Data:
    where = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(directory)],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    data = Data(directory, where, {})
    for algorithm in algorithms:
        files = [LayerFile(path, "", path.stat().st_size) for path in data.layers(algorithm)]
        data.image_bytes[algorithm] = sum(file.size for file in files)
        write_config(data.config(algorithm), files)
    return data


def kept_data() -> Path:
    """The directory that has the data, made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "hybrid-bench" / _VERSION
    if not directory.is_dir():
        print(f"bench: making the data in {directory} (once)", file=sys.stderr)
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole.
        with tempfile.TemporaryDirectory(dir=directory.parent) as name:
            draft = Path(name) / "draft"
            draft.mkdir()
            _make_data(draft)
            draft.rename(directory)
    return directory


def _make_data(directory: Path) -> None:
    disk = directory / _DISK
    with tempfile.TemporaryDirectory(dir=directory) as name:
        _copy_files(Path(name))
        _make_ext4(disk, Path(name))
    for algorithm in ALGORITHMS:
        for number in (1, 2, 3):
            changes = differences(disk, None) if number == 1 else _upper_changes(disk, number)
            write_layer(directory / f"{algorithm}-{number}.tar", DISK_SIZE, changes, algorithm)


def _copy_files(tree: Path) -> None:
    """Fill the tree; where the machine has too few files, they are taken several times."""
    size = 0
    for turn in itertools.count():
        for source in _corpus_files():
            target = tree / str(turn) / source.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            size += -(-target.stat().st_size // BLOCK) * BLOCK
            if size >= _FILES_SIZE:
                return


def _corpus_files() -> Iterator[Path]:
    for name in _CORPUS:
        yield from filter(_is_wanted, sorted(Path(name).rglob("*")))


def _is_wanted(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
        return False
    return 0 < path.stat().st_size <= _LARGEST_FILE and "__pycache__" not in path.parts


def _make_ext4(disk: Path, tree: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    options = ["-q", "-F", "-b", str(BLOCK), "-m", "0", "-O", "^has_journal", "-i", "8192"]
    options += ["-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0"]
    subprocess.run(["mkfs.ext4", *options, "-d", str(tree), str(disk)], check=True)


def _upper_changes(disk: Path, seed: int) -> Iterator[Change]:
    """Extents spread over the disk. They hold what the disk has there: it is the merged one."""
    numbers = random.Random(seed)
    mean_gap = (1 / _UPPER_SHARE - 1) * (_EXTENT_BLOCKS + 1) / 2
    block = int(numbers.expovariate(1 / mean_gap))
    with disk.open("rb") as file:
        while block < DISK_SIZE // BLOCK:
            count = min(numbers.randint(1, _EXTENT_BLOCKS), DISK_SIZE // BLOCK - block)
            file.seek(block * BLOCK)
            for offset in range(block * BLOCK, (block + count) * BLOCK, BLOCK):
                data = file.read(BLOCK)
                yield offset, data if any(data) else None
            block += count + 1 + int(numbers.expovariate(1 / mean_gap))
