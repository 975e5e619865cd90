"""Reads of an exposed disk: every size and alignment, the end, many readers, faults."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.exposed import exposed
from support.mounting import poll_until

from hybrid.mount.processes import process_state
from hybrid.mount.state import MountRecord

SIZES = (1, 511, 512, 513, 4095, 4096, 4097, 65536, 65537, 1 << 20, (1 << 20) + 4096, 3 << 20)


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_direct(descriptor: int, offset: int, length: int) -> bytes:
    """A read past the page cache, into memory that is aligned for it."""
    with mmap.mmap(-1, max(length, 4096)) as memory:
        count = os.preadv(descriptor, [memoryview(memory)[:length]], offset)
        return memory[:count]


def _waits_for(pid: int, disk: Path) -> bool:
    """Whether a process that does nothing but read the disk sleeps with it open."""
    try:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return False  # it opens and closes its libraries still
    return str(disk) in opened and process_state(pid) in "DS"


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_alignments(disk: MountRecord, truth: bytes, size: int) -> None:
    with _opened(disk.exposed) as descriptor:
        for offset in (0, 1, 511, 512, 4095, 4096, 8191, 12345, len(truth) - size):
            assert os.pread(descriptor, size, offset) == truth[offset : offset + size]


@pytest.mark.parametrize("size", [512, 1024, 4096, 65536, 1 << 20, 3 << 20])
def test_reads_past_the_page_cache(disk: MountRecord, truth: bytes, size: int) -> None:
    with _opened(disk.exposed, os.O_DIRECT) as descriptor:
        for offset in (0, 512, 4096, 65536 - 512, len(truth) - size):
            assert _read_direct(descriptor, offset, size) == truth[offset : offset + size]


def test_the_end(disk: MountRecord, truth: bytes) -> None:
    with _opened(disk.exposed) as descriptor:
        assert os.lseek(descriptor, 0, os.SEEK_END) == len(truth)
        assert os.pread(descriptor, 4096, len(truth) - 100) == truth[-100:]
        assert os.pread(descriptor, 4096, len(truth)) == b""
        assert os.pread(descriptor, 4096, len(truth) + (1 << 20)) == b""


def test_seeded_reads_at_random(disk: MountRecord, truth: bytes) -> None:
    chance = random.Random(5)
    with _opened(disk.exposed, os.O_DIRECT) as descriptor:
        for _ in range(300):
            offset = chance.randrange(len(truth) // 512) * 512
            length = min(chance.choice((512, 4096, 20480, 262144)), len(truth) - offset)
            assert _read_direct(descriptor, offset, length) == truth[offset : offset + length]


def test_many_readers_at_once(disk: MountRecord, truth: bytes) -> None:
    def read(seed: int) -> bool:
        chance = random.Random(seed)
        with _opened(disk.exposed, os.O_DIRECT) as descriptor:
            for _ in range(25):
                offset = chance.randrange(len(truth) // 4096) * 4096
                if _read_direct(descriptor, offset, 4096) != truth[offset : offset + 4096]:
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.parametrize("fault", ["error_at", "bug_at"])
def test_a_failing_range_fails_alone(mode: str, raw: Path, truth: bytes, fault: str) -> None:
    bad = 2 << 20
    with exposed(raw, mode, **{fault: f"{bad}-{bad + 4096}"}) as record:
        for _ in range(2):
            with _opened(record.exposed) as descriptor:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                assert os.pread(descriptor, 4096, bad - 4096) == truth[bad - 4096 : bad]
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    os.pread(descriptor, 4096, bad)
                assert os.pread(descriptor, 4096, bad + 4096) == truth[bad + 4096 : bad + 8192]
        assert f"at {bad} of raw" in record.log.read_text()


def test_a_read_that_hangs_holds_up_nobody(mode: str, raw: Path, truth: bytes) -> None:
    bad = 3 << 20
    with exposed(raw, mode, hang_at=f"{bad}-{bad + 512}") as record:
        reader = subprocess.Popen(
            ["dd", f"if={record.exposed}", "of=/dev/null", "iflag=direct", "bs=4096", "count=1",
             f"skip={bad // 4096}"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        poll_until(lambda: _waits_for(reader.pid, record.exposed), "a read that waits")
        with _opened(record.exposed, os.O_DIRECT) as descriptor:
            for offset in range(0, 1 << 20, 65536):
                assert _read_direct(descriptor, offset, 65536) == truth[offset : offset + 65536]
        assert reader.poll() is None
        # Its server ended by force, the read fails and the reader ends.
        os.kill(record.pid, signal.SIGKILL)
        os.waitpid(record.pid, 0)
    assert reader.wait(30) == 1


def test_nobody_writes(disk: MountRecord, truth: bytes) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT012, PT011
        descriptor = os.open(disk.exposed, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, bytes(4096), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    assert caught.value.errno in (errno.EROFS, errno.EPERM, errno.EACCES)
    with _opened(disk.exposed, os.O_DIRECT) as descriptor:
        assert _read_direct(descriptor, 0, 4096) == truth[:4096]
