"""The operations on the file, each of which is done to the model too."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

from exercise.model import Difference, Model

_LARGEST_FILE = 4 << 20
_LARGEST_PIECE = 128 << 10
_PUNCH_HOLE = 0x02  # with FALLOC_FL_KEEP_SIZE; linux/falloc.h
_KEEP_SIZE = 0x01
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ExercisedFile:
    """An open file and the model of it. ``numbers`` decides what an operation is done to."""

    def __init__(self, path: Path, model: Model, numbers: random.Random) -> None:
        self._path = path
        self._model = model
        self._numbers = numbers
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        os.close(self._descriptor)

    def operations(self) -> list[tuple[int, Callable[[], str]]]:
        """All of them, each with how often it comes. They return what they did."""
        return [
            (30, self.write), (20, self.read), (10, self.write_mapped), (5, self.read_mapped),
            (6, self.truncate), (8, self.punch), (6, self.fsync), (6, self.read_from_disk),
        ]  # fmt: skip

    def write(self) -> str:
        offset, length = self._range(_LARGEST_FILE)
        data = self._data(length)
        self._model.write(offset, data)
        done = 0
        while done < length:
            done += os.pwrite(self._descriptor, data[done:], offset + done)
        return f"pwrite {length} at {offset}"

    def read(self) -> str:
        offset, length = self._range(len(self._model.content))
        self._compare(offset, length, "pread")
        return f"pread {length} at {offset}"

    def write_mapped(self) -> str:
        offset, length = self._range(len(self._model.content))
        if not length:
            return "write to a map: nothing, since the file is empty"
        data = self._data(length)
        with mmap.mmap(self._descriptor, len(self._model.content)) as pages:
            pages[offset : offset + length] = data
        self._model.write(offset, data)
        return f"write {length} to a map at {offset}"

    def read_mapped(self) -> str:
        offset, length = self._range(len(self._model.content))
        if length:
            with mmap.mmap(
                self._descriptor, len(self._model.content), prot=mmap.PROT_READ
            ) as pages:
                self._model.check(offset, pages[offset : offset + length], "read from a map")
        return f"read {length} from a map at {offset}"

    def truncate(self) -> str:
        size = self._numbers.randrange(_LARGEST_FILE)
        os.ftruncate(self._descriptor, size)
        self._model.truncate(size)
        return f"truncate to {size}"

    def punch(self) -> str:
        offset, length = self._range(_LARGEST_FILE)
        if _LIBC.fallocate(self._descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self._path))
        self._model.zero(offset, length)
        return f"punch {length} at {offset}"

    def fsync(self) -> str:
        os.fsync(self._descriptor)
        self._model.synchronised()
        return "fsync"

    def read_from_disk(self) -> str:
        """What is in the page cache is dropped first: the image must have it."""
        self.fsync()
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        offset, length = self._range(len(self._model.content))
        self._compare(offset, length, "pread from disk")
        return f"fsync, drop caches, pread {length} at {offset}"

    def compare_whole(self, what: str) -> None:
        """Raises Difference."""
        self._model.check_whole(self._whole(), what)

    def recover(self) -> None:
        """Compare after a crash; raises Difference. Then synchronise what is there."""
        self._model.recover(self._whole())
        self.fsync()

    def _whole(self) -> bytes:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return self._path.read_bytes()

    def _compare(self, offset: int, length: int, what: str) -> None:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise Difference(f"{what}: {len(data)} bytes of {length} at {offset}")
        self._model.check(offset, data, what)

    def _range(self, limit: int) -> tuple[int, int]:
        """Somewhere below ``limit``: now and then whole pages, more often not; small or large."""
        if not limit:
            return 0, 0
        offset = self._numbers.randrange(limit)
        length = self._numbers.choice((64, 5000, _LARGEST_PIECE))
        length = 1 + self._numbers.randrange(length)
        if self._numbers.random() < 0.3:
            offset, length = offset & ~4095, (length + 4095) & ~4095
        return offset, min(length, limit - offset)

    def _data(self, length: int) -> bytes:
        """Random bytes, or (more rarely) zeros, which hybrid stores as such."""
        if self._numbers.random() < 0.15:
            return bytes(length)
        return self._numbers.randbytes(length)
