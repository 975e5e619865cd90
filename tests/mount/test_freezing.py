"""Freezing a real file system, and that it is thawed whatever becomes of whoever froze it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounting import poll_until

from hybrid.errors import (
    BusyError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
    UnsupportedError,
)
from hybrid.mount.freezing import frozen

FITHAW = 0xC0045878
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and freezing need root")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "image", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    thaw(place)
    subprocess.run(["umount", place], check=True)


def thaw(place: Path) -> bool:
    """Whether it was frozen."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_writable(place: Path, seconds: float) -> bool:
    """Whether a write is done within that time; it is waited for in any case at the end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        (place / "probe").write_text("x")
        os.write(writer, b"x")
        os._exit(0)
    os.close(writer)
    done = bool(select.select([reader], [], [], seconds)[0])
    os.close(reader)
    threading.Thread(target=os.waitpid, args=(pid, 0)).start()
    return done


@needs_root
def test_writers_wait_until_the_thaw(mounted: Path) -> None:
    with frozen(mounted):
        assert not is_writable(mounted, 0.3)
    assert is_writable(mounted, 5)
    assert not thaw(mounted)


@needs_root
def test_what_was_written_is_on_the_disk(mounted: Path, tmp_path: Path) -> None:
    (mounted / "file").write_text("content")
    with frozen(mounted):
        os.sync()
        copy = tmp_path / "copy"
        copy.write_bytes((tmp_path / "image").read_bytes())
        done = subprocess.run(["e2fsck", "-fn", copy], capture_output=True, check=False)
    assert done.returncode == 0, done
    assert subprocess.run(
        ["debugfs", "-R", "cat /file", copy], capture_output=True, check=True
    ).stdout == b"content"  # fmt: skip


@needs_root
def test_an_error_thaws(mounted: Path) -> None:
    with pytest.raises(ZeroDivisionError), frozen(mounted):
        raise ZeroDivisionError
    assert is_writable(mounted, 5)


@needs_root
def test_the_death_of_the_parent_thaws(mounted: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hybrid.mount.freezing import frozen\n"
        f"with frozen(Path({str(mounted)!r})):\n  print('frozen', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"frozen\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert is_writable(mounted, 5)


@needs_root
def test_a_block_that_takes_too_long_fails(mounted: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutExpiredError, match="thawed after"), frozen(mounted, 0.2):
        # The writer goes on by itself.
        assert is_writable(mounted, 10)
    assert time.monotonic() - started >= 0.2


@needs_root
def test_frozen_already(mounted: Path) -> None:
    with frozen(mounted), pytest.raises(BusyError, match="somebody else"), frozen(mounted):
        pass
    poll_until(lambda: is_writable(mounted, 1), "the thaw")


@needs_root
def test_the_death_of_the_guard_thaws(mounted: Path) -> None:
    before = children()
    with pytest.raises(SystemSupportError, match="was killed"), frozen(mounted):
        os.kill((children() - before).pop(), signal.SIGKILL)
    assert is_writable(mounted, 5)


@needs_root
def test_another_file_system_is_left_alone(mounted: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.stat().st_dev
    with pytest.raises(BusyError, match="not mounted any more"), frozen(mounted, device=elsewhere):
        pass
    with frozen(mounted, device=mounted.stat().st_dev):
        pass


def children() -> set[int]:
    found = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return {int(word) for word in found.split()}


def test_what_cannot_be_frozen(tmp_path: Path) -> None:
    expected = (UnsupportedError, PermissionNeededError)
    with pytest.raises(expected), frozen(Path("/proc")):
        pass
    with pytest.raises(SystemSupportError, match="No such file"), frozen(tmp_path / "missing"):
        pass
