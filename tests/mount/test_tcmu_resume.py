"""What resume refuses, and how each way to fail leaves a mount that can be resumed later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.mounting import MIB, PATIENCE, poll_until
from support.tcmu_bench import Child, KernelLog, Reader, TcmuBench, reading

from hybrid.block import configfs
from hybrid.errors import BusyError, FormatError, NotFoundError, SystemSupportError
from hybrid.mount.listing import list_mounts
from hybrid.mount.processes import process_state
from hybrid.mount.state import MountRecord

pytestmark = pytest.mark.guest


@contextmanager
def dead_server(tcmu: TcmuBench) -> Iterator[tuple[MountRecord, Reader]]:
    """A disk whose server was killed under a reader. The block ends with the reader at work."""
    record = tcmu.attach(tcmu.raw(4 * MIB))
    with reading(record.exposed, tcmu.truth) as reader:
        tcmu.kill(record)
        reader.hangs()
        yield record, reader
        reader.go_on()
    tcmu.detach(tcmu.current(record))


def assert_still_dead(tcmu: TcmuBench, record: MountRecord) -> None:
    """As it was before the resume that failed."""
    assert tcmu.current(record) == record
    assert [mount.state for mount in list_mounts()] == ["dead"]


def test_a_live_server_is_left_alone(tcmu: TcmuBench) -> None:
    record = tcmu.attach(tcmu.raw(MIB))
    with reading(record.exposed, tcmu.truth) as reader:
        assert tcmu.resume(record) == record
        reader.go_on()
    assert tcmu.current(record) == record
    assert tcmu.detach(record)


@pytest.mark.parametrize("change", ["longer", "other"])
def test_an_image_that_changed_is_refused(tcmu: TcmuBench, change: str) -> None:
    with dead_server(tcmu) as (record, reader):
        raw = tcmu.directory / "raw.img"
        if change == "longer":
            os.truncate(raw, 5 * MIB)
            changes = {}
        else:
            other = tcmu.directory / "other.img"
            other.write_bytes(bytes(4 * MIB))
            changes = {"raw": str(other)}
        with pytest.raises(FormatError, match=r"raw\.img is not the image any more") as caught:
            tcmu.resume(record, **changes)
        assert f"hybrid umount {record.id}" in caught.value.hint
        assert_still_dead(tcmu, record)
        assert not reader.has_ended()
        os.truncate(raw, 4 * MIB)
        tcmu.resume(record)


@pytest.mark.parametrize(
    ("opening", "error", "text"),
    [
        ("fail", FormatError, "layer 2 is damaged"),
        ("bug", RuntimeError, "KeyError: 'a bug while opening'"),
        ("die", SystemSupportError, "killed by SIGKILL"),
    ],
)
def test_an_opening_that_fails(
    tcmu: TcmuBench, opening: str, error: type[Exception], text: str
) -> None:
    with dead_server(tcmu) as (record, _):
        with pytest.raises(error, match=text):
            tcmu.resume(record, opening=opening)
        assert_still_dead(tcmu, record)
        assert tcmu.resume(record).server.is_alive()
    for log in tcmu.state.glob("failed-*.log"):  # told in the message of a bug
        log.unlink()


@pytest.mark.parametrize("step", ["block_device", "reset_ring"])
def test_a_server_that_dies_while_it_takes_the_ring_over(
    tcmu: TcmuBench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The device stays blocked then, or the ring is empty already."""
    with dead_server(tcmu) as (record, _):
        real = getattr(configfs, step)
        with monkeypatch.context() as patch:
            patch.setattr(configfs, step, lambda *args: (real(*args), die()))
            with pytest.raises(SystemSupportError, match="killed by SIGKILL"):
                tcmu.resume(record)
        assert_still_dead(tcmu, record)
        tcmu.resume(record)


def test_a_blocked_device_can_be_taken_away(
    tcmu: TcmuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tcmu.attach(tcmu.raw(MIB))
    tcmu.kill(record)
    monkeypatch.setattr(configfs, "reset_ring", die)
    with pytest.raises(SystemSupportError, match="killed by SIGKILL"):
        tcmu.resume(record)
    monkeypatch.undo()
    started = time.monotonic()
    assert tcmu.detach(record)
    assert time.monotonic() - started < 4 * PATIENCE
    assert tcmu.leftovers() == []


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_at_the_same_time(tcmu: TcmuBench, kernel_log: KernelLog) -> None:
    with dead_server(tcmu) as (record, _):
        children = [Child(lambda: str(tcmu.resume(record).pid)) for _ in range(2)]
        pids = {child.result() for child in children}
        (pid,) = pids
        assert pid == str(tcmu.current(record).pid) != str(record.pid)
    assert kernel_log.trouble() == []


def test_a_resume_that_is_killed_itself(tcmu: TcmuBench) -> None:
    """Its new server, which still opens the image, goes; the next resume need not wait for it."""
    with dead_server(tcmu) as (record, _):
        resuming = Child(lambda: str(tcmu.resume(record, opening="hang")))
        poll_until(lambda: children_of(resuming.pid), "its server")
        (server,) = children_of(resuming.pid)
        resuming.end()
        assert_still_dead(tcmu, record)
        tcmu.resume(record)
        poll_until(lambda: process_state(server) in ("", "Z"), "the end of the first server")


def children_of(pid: int) -> list[int]:
    text = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text()
    return [int(child) for child in text.split()]


def test_a_mount_that_is_gone(tcmu: TcmuBench) -> None:
    record = tcmu.attach(tcmu.raw(MIB))
    assert tcmu.detach(record)
    with pytest.raises(NotFoundError, match="is gone"):
        tcmu.resume(record)


def test_a_ring_that_somebody_else_serves(tcmu: TcmuBench) -> None:
    with dead_server(tcmu) as (record, _):
        uio = configfs.find_uio(configfs.Target(record.id, configfs.wwn_of(record.id)))
        descriptor = os.open(f"/dev/{uio}", os.O_RDWR)
        with pytest.raises(BusyError, match="another process serves"):
            tcmu.resume(record)
        os.close(descriptor)
        assert_still_dead(tcmu, record)
        tcmu.resume(record)
