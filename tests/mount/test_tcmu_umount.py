"""Ways a TCMU mount ends: orderly, in use, by umount(8), and with a server that does not answer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.mounting import MIB, ImageMaker, poll_until
from support.tcmu_bench import Child, KernelLog, Reader, TcmuBench, reading, reap

from hybrid.errors import BusyError
from hybrid.mount.listing import list_mounts
from hybrid.mount.state import MountRecord

pytestmark = pytest.mark.guest

SECONDS = 20.0
"""Most that an umount with a dead server may take in the guest; the kernel's own time is 97 s."""


@contextmanager
def within_seconds() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


@contextmanager
def holding(path: Path) -> Iterator[Child]:
    """A process that has the file or directory open until the end of the block."""
    reader, writer = os.pipe()

    def hold() -> None:
        os.close(writer)
        descriptor = os.open(path, os.O_RDONLY)
        os.read(reader, 1)
        os.close(descriptor)

    child = Child(hold)
    os.close(reader)
    try:
        poll_until(lambda: has_open(child.pid, path), f"{path} opened")
        yield child
    finally:
        os.close(writer)
        assert child.result() == ""


def has_open(pid: int, path: Path) -> bool:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        return any(os.readlink(entry.path) == str(path) for entry in entries)


def states() -> list[str]:
    return [mount.state for mount in list_mounts()]


def test_an_open_file_makes_a_mount_busy_and_it_stays(tcmu: TcmuBench, images: ImageMaker) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    with holding(tcmu.mountpoint / "hello") as child:
        with pytest.raises(BusyError, match=rf"in use by .*\(pid {child.pid}\)") as caught:
            tcmu.detach(record)
        assert "--lazy" in caught.value.hint
        images.check_tree(tcmu.mountpoint)
        assert states() == ["ready"]
    assert tcmu.detach(record)
    assert tcmu.leftovers() == []


def test_an_exposed_disk_that_is_open_stays(tcmu: TcmuBench) -> None:
    record = tcmu.attach(tcmu.raw(MIB))
    with reading(record.exposed, tcmu.truth) as reader, holding(record.exposed) as child:
        with pytest.raises(BusyError, match=rf"\(pid {child.pid}\)"):
            tcmu.detach(record)
        reader.go_on()
        assert states() == ["ready"]
    assert tcmu.detach(record)
    assert tcmu.leftovers() == []


def test_an_exposed_disk_that_somebody_has_mounted_stays(
    tcmu: TcmuBench, images: ImageMaker
) -> None:
    record = tcmu.attach(images.get("ext4"))
    subprocess.run(["mount", "-o", "ro", record.exposed, tcmu.mountpoint], check=True)
    with pytest.raises(BusyError, match=f"{record.device} is "):
        tcmu.detach(record)
    images.check_tree(tcmu.mountpoint)
    subprocess.run(["umount", tcmu.mountpoint], check=True)
    assert tcmu.detach(record)


def test_a_plain_umount_leaves_nothing_behind(tcmu: TcmuBench, images: ImageMaker) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    subprocess.run(["umount", tcmu.mountpoint], check=True)
    tcmu.assert_clean()
    reap(record.pid)


def test_a_lazy_umount_ends_with_the_last_user(tcmu: TcmuBench, images: ImageMaker) -> None:
    """By umount(8): nobody of hybrid is asked."""
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    blob = images.tree / "sub" / "blob"
    with (tcmu.mountpoint / "sub" / "blob").open("rb") as file:
        subprocess.run(["umount", "-l", tcmu.mountpoint], check=True)
        assert states() == ["unmounted"]
        log = record.log
        poll_until(lambda: "still in use elsewhere" in log.read_text(), "the server's try")
        assert file.read() == blob.read_bytes()
    tcmu.assert_clean()
    reap(record.pid)


def test_hybrid_umount_lazy_ends_with_the_last_user(tcmu: TcmuBench, images: ImageMaker) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    blob = images.tree / "sub" / "blob"
    with (tcmu.mountpoint / "sub" / "blob").open("rb") as file:
        assert not tcmu.detach(record, lazy=True)
        assert list(tcmu.mountpoint.iterdir()) == []
        assert file.read() == blob.read_bytes()
    tcmu.assert_clean()
    reap(record.pid)


def stop(tcmu: TcmuBench, record: MountRecord) -> None:
    os.kill(record.pid, signal.SIGSTOP)


SILENCE: list[Callable[[TcmuBench, MountRecord], None]] = [TcmuBench.kill, stop]


@pytest.mark.parametrize("silence", SILENCE, ids=["dead", "stopped"])
@pytest.mark.parametrize("is_mounted", [True, False], ids=["mounted", "exposed"])
def test_a_server_that_does_not_answer(
    tcmu: TcmuBench,
    images: ImageMaker,
    kernel_log: KernelLog,
    silence: Callable[[TcmuBench, MountRecord], None],
    is_mounted: bool,
) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint if is_mounted else None)
    silence(tcmu, record)
    with within_seconds():
        assert tcmu.detach(record)
    assert tcmu.leftovers() == []
    assert [line for line in kernel_log.trouble() if "blocked for" in line] == []


def test_a_writable_disk_whose_server_is_dead(tcmu: TcmuBench) -> None:
    """Writes may wait for the next server. Whoever gives them up has it taken away at once, though
    sd wants its cache written back when the disk goes."""
    record = tcmu.attach(tcmu.raw(MIB), writable=True)
    record.exposed.open("r+b").close()
    tcmu.kill(record)
    with pytest.raises(BusyError, match="is dead, and changes wait for it"):
        tcmu.detach(record)
    with within_seconds():
        assert tcmu.detach(record, lazy=True)
    assert tcmu.leftovers() == []


@pytest.mark.parametrize("silence", SILENCE, ids=["dead", "stopped"])
def test_a_reader_that_hangs(
    tcmu: TcmuBench,
    images: ImageMaker,
    silence: Callable[[TcmuBench, MountRecord], None],
) -> None:
    """It makes the mount busy, with the way out told; --lazy frees it."""
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    silence(tcmu, record)
    reader = Child(lambda: read_file(tcmu.mountpoint / "sub" / "blob"))
    try:
        poll_until(lambda: reader.state() == "D", "a read that hangs")
        with within_seconds(), pytest.raises(BusyError, match=rf"pid {reader.pid}\b") as caught:
            tcmu.detach(record)
        assert "--lazy" in caught.value.hint
        if silence is TcmuBench.kill:
            assert f"hybrid resume {record.id}" in caught.value.hint
        assert reader.state() == "D"
        with within_seconds():
            assert tcmu.detach(record, lazy=True)
            assert reader.result() == errno.errorcode[errno.EIO]
    finally:
        reader.end()
    assert tcmu.leftovers() == []


def test_a_reader_of_an_exposed_disk_that_hangs(tcmu: TcmuBench) -> None:
    record = tcmu.attach(tcmu.raw())
    reader = Reader(record.exposed, tcmu.truth)
    try:
        reader.go_on()
        tcmu.kill(record)
        reader.hangs()
        with within_seconds():
            assert tcmu.detach(record, lazy=True)
            assert "Error" in reader.stop()
    finally:
        reader.end()
    assert tcmu.leftovers() == []


def read_file(path: Path) -> str:
    try:
        path.read_bytes()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_sigterm_takes_the_mount_away_in_order(tcmu: TcmuBench, images: ImageMaker) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    os.kill(record.pid, signal.SIGTERM)
    tcmu.assert_clean()
    reap(record.pid)


def test_a_resumed_server_takes_its_mount_away_too(tcmu: TcmuBench, images: ImageMaker) -> None:
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    tcmu.kill(record)
    record = tcmu.resume(record)
    subprocess.run(["umount", tcmu.mountpoint], check=True)
    tcmu.assert_clean()
    reap(record.pid)
