"""Mounts in mode tcmu by function calls instead of commands, which take long in the guest; readers
and writers that find out whether anything was lost; and the kernel's log.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.exposed import expose
from support.mount_driver import opener
from support.mounting import MIB, MountBench, poll_until

from hybrid.mount import resume as resuming
from hybrid.mount.detach import detach
from hybrid.mount.processes import process_state
from hybrid.mount.state import MountRecord, read_record
from hybrid.mount.tcmu_support import prepare_tcmu


class TcmuBench(MountBench):
    """A MountBench whose mounts are made in this process, which becomes their servers' parent."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.truth = b""

    def raw(self, size: int = 8 * MIB, seed: int = 1) -> Path:
        """A file of random bytes, which are the truth from now on."""
        path = self.directory / "raw.img"
        self.truth = random.Random(seed).randbytes(size)
        path.write_bytes(self.truth)
        return path

    def attach(self, raw: Path, mountpoint: Path | None = None, **options: Any) -> MountRecord:
        return expose(raw, "tcmu", mountpoint, **options)

    def resume(self, record: MountRecord, **changes: Any) -> MountRecord:
        """``changes``: how the image is opened differently from what the record tells."""
        return resuming.resume(record, lambda record: opener({**record.origin, **changes}))

    def current(self, record: MountRecord) -> MountRecord:
        found = read_record(record.directory)
        assert found is not None
        return found

    def detach(self, record: MountRecord, *, lazy: bool = False) -> bool:
        ended = detach(record, lazy=lazy)
        if ended:
            reap(record.pid)
        return ended

    def kill(self, record: MountRecord) -> None:
        """kill -9 of the server; it is gone when this returns."""
        os.kill(record.pid, signal.SIGKILL)
        reap(record.pid)


def reap(pid: int) -> None:
    """Wait for a server, if it is a child of ours."""
    try:
        poll_until(lambda: os.waitpid(pid, os.WNOHANG)[0], f"the end of process {pid}")
    except ChildProcessError:
        poll_until(lambda: process_state(pid) in ("", "Z"), f"the end of process {pid}")


@pytest.fixture
def tcmu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcmuBench]:
    """A TcmuBench. After the test nothing of it may be left, or the test fails."""
    prepare_tcmu()
    made = TcmuBench(tmp_path)
    monkeypatch.setenv("HYBRID_STATE_DIR", str(made.state))
    try:
        yield made
        if made.leftovers():
            made.assert_clean()
    finally:
        made.tear_down()


class Child:
    """A forked process that runs ``work``, which returns a text, and what has become of it."""

    def __init__(self, work: Callable[[], str | None]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run(work, writer)
        os.close(writer)
        self._reader = reader
        self._result: str | None = None

    def state(self) -> str:
        """The kernel's letter, "" or "Z" once it has ended."""
        return process_state(self.pid)

    def result(self, seconds: float = 20.0) -> str:
        """Wait for the end; what ``work`` returned, or the last line of its exception."""
        if self._result is None:
            os.set_blocking(self._reader, False)
            poll_until(lambda: os.waitpid(self.pid, os.WNOHANG)[0], f"{self.pid}'s end", seconds)
            self._result = _read_all(self._reader)
            os.close(self._reader)
        return self._result

    def end(self) -> None:
        """Whatever it does."""
        if self._result is None:
            os.kill(self.pid, signal.SIGKILL)
            self.result()


def _run(work: Callable[[], str | None], writer: int) -> None:
    answer: str | None = "did not end"
    try:
        answer = work()
    except BaseException as error:
        answer = traceback.format_exception_only(error)[-1].strip()
    finally:
        os.write(writer, (answer or "").encode()[:4096])
        os._exit(0)


def _read_all(descriptor: int) -> str:
    found = b""
    try:
        while part := os.read(descriptor, 4096):
            found += part
    except BlockingIOError:
        pass  # a process that it forked holds the other end
    return found.decode()


class Reader:
    """A process that reads at random past the page cache, and compares with the truth.

    The seed decides what is read. It ends with the first read that fails or is wrong.
    """

    def __init__(self, disk: Path, truth: bytes, seed: int = 1) -> None:
        self._shared = mmap.mmap(-1, 4096)
        self._child = Child(lambda: self._read(disk, truth, random.Random(seed)))

    def _read(self, disk: Path, truth: bytes, chance: random.Random) -> str:
        descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
        count = 0
        while self._shared[8] == 0:
            offset = chance.randrange(len(truth) // 512) * 512
            length = min(chance.choice((512, 4096, 65536, MIB)), len(truth) - offset)
            if read_direct(descriptor, offset, length) != truth[offset : offset + length]:
                return f"wrong data in {length} bytes at {offset}"
            count += 1
            self._shared[0:8] = struct.pack("=Q", count)
        return ""

    @property
    def reads(self) -> int:
        """How many were right until now."""
        count: int = struct.unpack("=Q", self._shared[0:8])[0]
        return count

    def go_on(self, reads: int = 20) -> None:
        """Return after so many more reads."""
        wanted = self.reads + reads
        poll_until(lambda: self.reads >= wanted or self.has_ended(), f"{reads} reads")
        assert not self.has_ended(), self._child.result()

    def has_ended(self) -> bool:
        return self._child.state() in ("", "Z")

    def hangs(self) -> None:
        """Return when it waits in the kernel."""
        poll_until(lambda: self._child.state() == "D", "a read that hangs")

    def stop(self) -> str:
        """End it after the read in flight; what went wrong, "" for nothing."""
        self._shared[8] = 1
        return self._child.result()

    def end(self) -> None:
        self._child.end()


@contextmanager
def reading(disk: Path, truth: bytes, seed: int = 1) -> Iterator[Reader]:
    """A Reader that works already, and at the end of the block must have met no trouble."""
    reader = Reader(disk, truth, seed)
    try:
        reader.go_on()
        yield reader
        assert reader.stop() == ""
    finally:
        reader.end()


def read_direct(descriptor: int, offset: int, length: int) -> bytes:
    """A read past the page cache, into memory that is aligned for it."""
    with mmap.mmap(-1, max(length, 4096)) as memory, memoryview(memory)[:length] as view:
        count = os.preadv(descriptor, [view], offset)
        return memory[:count]


def content_of(disk: Path, size: int) -> bytes:
    """All of a disk, past the page cache."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        return b"".join(read_direct(descriptor, at, MIB) for at in range(0, size, MIB))
    finally:
        os.close(descriptor)


class KernelLog:
    """What the kernel has said since this was made."""

    def __init__(self) -> None:
        self._descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def trouble(self) -> list[str]:
        """Lines about failed or given up I/O, hanging tasks, or bugs, since the last call."""
        marks = ("error", "abort", "reset", "timed out", "timeout", "blocked for", "BUG", "WARNING")
        return [line for line in self._lines() if any(mark in line for mark in marks)]

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                record = os.read(self._descriptor, 8192)
            except BlockingIOError:
                return
            yield record.split(b"\n", 1)[0].partition(b";")[2].decode(errors="replace")

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def kernel_log() -> Iterator[KernelLog]:
    log = KernelLog()
    yield log
    log.close()
