"""The golden vectors: files made by the reference implementation, and what it read from them.

``tree()`` is the unpacked archive ``tests/data/golden.tar.zst``. It is unpacked once per user into
the system's temporary directory, under a name that holds the archive's digest, and used again by
later runs, so that collecting tests costs milliseconds. Nothing here imports the product.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pytest
import zstandard

ARCHIVE = Path(__file__).parents[1] / "data" / "golden.tar.zst"
ARCHIVE_SHA256 = "3a3e1c00b1d797c0eac7020229f4d9866a0784c24b631e7acd3c1d25d05b2b65"
BASE64G_VARIABLE = "HYBRID_BASE64G"
"""Environment variable that names base64g.tar.zst, if it lies elsewhere than ../shared/golden."""
WINDOW = 1 << 27
"""Bytes of history that the archives were compressed with (zstd --long=27)."""
CHUNK = 1 << 20

Row = dict[str, Any]


@cache
def tree() -> Path:
    """The directory of the unpacked golden vectors. Read only: tests must not write here."""
    return unpacked(ARCHIVE, ARCHIVE_SHA256)


def base64g_archive() -> Path:
    """Where the archive with the 64 GiB image is expected; it may be absent."""
    default = Path(__file__).parents[2].parent / "shared" / "golden" / "base64g.tar.zst"
    return Path(os.environ.get(BASE64G_VARIABLE, default))


def base64g() -> Path:
    """The unpacked 64 GiB image over the stock base layer."""
    archive = base64g_archive()
    return unpacked(archive, hashlib.sha256(archive.read_bytes()).hexdigest())


def unpacked(archive: Path, sha256: str) -> Path:
    """Where this archive lies unpacked; unpacks it if that was not done yet, or is incomplete."""
    target = Path(tempfile.gettempdir()) / f"hybrid-golden-{os.getuid()}-{sha256[:16]}"
    if is_whole(target):
        return target
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert actual == sha256, f"{archive} has sha256 {actual}, not {sha256}"
    fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    names = unpack(archive, fresh)
    (fresh / ".names").write_text("\n".join(names))
    if target.is_symlink() or target.exists():
        # What stands there is incomplete or not ours: it is left alone if it cannot be removed.
        shutil.rmtree(target, ignore_errors=True)
    try:
        fresh.rename(target)
    except OSError:
        # Another run was faster, or the name is taken by another user.
        if not is_whole(target):
            return fresh
        shutil.rmtree(fresh)
    return target


def is_whole(target: Path) -> bool:
    """True if the directory is ours alone and no file of it is missing."""
    try:
        status = target.lstat()
        names = (target / ".names").read_text().splitlines()
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022
    return private and status.st_uid == os.getuid() and all((target / n).exists() for n in names)


def unpack(archive: Path, target: Path) -> list[str]:
    """Unpack regular files only, none outside ``target``; returns their names."""
    names = []
    with open_tar_zst(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isfile():
                continue
            assert not name.is_absolute(), name
            assert ".." not in name.parts, name
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
            names.append(str(name))
    return names


@contextmanager
def open_tar_zst(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar stream, to be read from front to back."""
    with (
        archive.open("rb") as packed,
        open_zstd(packed) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        yield tar


def open_zstd(packed: BinaryIO) -> zstandard.ZstdDecompressionReader:
    return zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(packed)


@cache
def rows(directory: str) -> list[Row]:
    """The rows of ``directory/vectors.jsonl``."""
    lines = (tree() / directory / "vectors.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def vectors(directory: str, where: Callable[[Row], bool] = lambda row: True) -> list[Any]:
    """Parameters for pytest.mark.parametrize: one row each, with the vector's name as its id."""
    return [pytest.param(row, id=row["name"]) for row in rows(directory) if where(row)]


def row_of(directory: str, name: str) -> Row:
    return next(row for row in rows(directory) if row["name"] == name)


def data_of(name: str) -> bytes:
    """Bytes of a file of the tree (``dir/file``); of its ``.zst`` form if only that is there."""
    path = tree() / name
    if path.exists():
        return path.read_bytes()
    packed = path.with_name(path.name + ".zst").read_bytes()
    return zstandard.ZstdDecompressor(max_window_size=WINDOW).decompress(
        packed, max_output_size=1 << 26
    )


def layers_of_s255() -> list[bytes]:
    """The 255 layers of the vector lsmt/s255, bottom first."""
    with open_tar_zst(tree() / "lsmt/s255.layers.tar.zst") as tar:
        found = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    return [found[name] for name in sorted(found)]


def unpack_sparse(name: str, target: Path) -> list[Path]:
    """Unpack ``dir/file.sparse.tar.zst`` with holes as holes, as GNU tar would (python cannot
    make holes from a stream); returns the files."""
    plain = data_of(name.removesuffix(".zst"))
    made = []
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for member in tar:
            path = target / PurePosixPath(member.name).name
            content = tar.extractfile(member)
            assert content is not None
            with path.open("wb") as out:
                out.truncate(member.size)
                for start, size in member.sparse or [(0, member.size)]:
                    content.seek(start)
                    out.seek(start)
                    out.write(content.read(size))
            made.append(path)
    return made


class Run(NamedTuple):
    """Bytes of a disk at ``offset`` (bytes). What no run covers is zero."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True)
class Expected:
    """What a disk must contain: size in bytes, the digest of all of it, and what is not zero."""

    size: int
    sha256: str
    runs: tuple[Run, ...]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes that a read of this range must give."""
        found = bytearray(length)
        for run in self._near(offset, length):
            begin, end = max(offset, run.offset), min(offset + length, run.end)
            if begin < end:
                found[begin - offset : end - offset] = run.data[begin - run.offset :][: end - begin]
        return bytes(found)

    def is_zero(self, offset: int, length: int) -> bool:
        """True if the whole range must read as zeros. Cheap for any length."""
        return not any(
            any(run.data[max(0, offset - run.offset) : offset + length - run.offset])
            for run in self._near(offset, length)
            if run.offset < offset + length and run.end > offset
        )

    def digest(self) -> str:
        """sha256 over all of it: about two seconds a GiB."""
        total = hashlib.sha256()
        for offset in range(0, self.size, CHUNK):
            total.update(self.read(offset, min(CHUNK, self.size - offset)))
        return total.hexdigest()

    def _near(self, offset: int, length: int) -> tuple[Run, ...]:
        first = bisect.bisect_right(self.runs, offset, key=lambda run: run.end)
        last = bisect.bisect_left(self.runs, offset + length, key=lambda run: run.offset)
        return self.runs[first:last]


def _runs_of_raw(path: Path) -> Iterator[Run]:
    zeros = bytes(CHUNK)
    with path.open("rb") as packed, open_zstd(packed) as plain:
        offset = 0
        while chunk := plain.read(CHUNK):
            if chunk != zeros[: len(chunk)]:
                yield Run(offset, chunk)
            offset += len(chunk)


def _runs_of_map(map_path: Path, data_path: Path) -> Iterator[Run]:
    with data_path.open("rb") as packed, open_zstd(packed) as plain:
        for line in map_path.read_text().splitlines():
            offset, length = map(int, line.split())
            data = plain.read(length)
            assert len(data) == length
            yield Run(offset, data)


@cache
def expected(directory: str, name: str) -> Expected:
    """What the vector ``name`` must read as, from its ``raw`` file or its map and data files."""
    row = row_of(directory, name)
    return expected_of(tree() / directory, row)


def expected_of(folder: Path, row: Row) -> Expected:
    """The same for a row of any unpacked archive. Rows without ``raw`` have no runs."""
    raw = row.get("raw", "")
    if ".map" in raw:
        stem = raw.split(".map")[0]
        runs = tuple(_runs_of_map(folder / f"{stem}.map", folder / f"{stem}.dat.zst"))
    else:
        runs = tuple(_runs_of_raw(folder / raw)) if raw else ()
    return Expected(row.get("vsize", 0), row["raw_sha256"], runs)


class Segments(NamedTuple):
    """A ``segments.txt``: virtual size in bytes; (offset, length, moffset, zeroed, tag) each."""

    vsize: int
    segments: list[tuple[int, int, int, int, int]]


def segments_of(path: Path) -> Segments:
    head, *lines = path.read_text().splitlines()
    vsize = int(head.split("vsize")[1].split()[0])
    found = []
    for line in lines:
        offset, length, moffset, zeroed, tag = map(int, line.split())
        found.append((offset, length, moffset, zeroed, tag))
    return Segments(vsize, found)


def writable_copy(directory: str, config: str, target: Path) -> Path:
    """A copy, to be written to, of the config of an image with a writable layer and of that layer.

    Its lowers are linked. Returns the path of the config in ``target``.
    """
    folder = tree() / directory
    found = json.loads((folder / config).read_text())
    for lower in found["lowers"]:
        (target / lower["file"]).symlink_to(folder / lower["file"])
    for name in (found["upper"]["data"], found["upper"]["index"]):
        copy_writable(folder, name, target)
    shutil.copy(folder / config, target / config)
    return target / config


def copy_writable(folder: Path, name: str, target: Path) -> None:
    """One file of a writable layer, wherever the archive keeps it; holes are holes again."""
    stem = name.removesuffix(".data").removesuffix(".index")
    archives = [folder / f"{name}.sparse.tar.zst", folder / f"{stem}.sparse.tar.zst"]
    archive = next((path for path in archives if path.exists()), None)
    if (folder / name).exists():
        shutil.copy(folder / name, target / name)
    elif (folder / f"{name}.zst").exists():
        with zstandard.open(folder / f"{name}.zst", "rb") as packed:
            (target / name).write_bytes(packed.read())
    else:
        assert archive is not None, name
        with zstandard.open(archive, "rb") as packed:
            subprocess.run(
                ["tar", "-xSf", "-", "-C", target, name], input=packed.read(), check=True
            )
