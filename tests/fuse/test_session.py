"""What ``run_session`` lends to pyfuse3: the lock, the eager wait, and both in a real session."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing
from support.mounting import MIB, ImageMaker, MountBench, poll_until

from hybrid.fuse import session
from hybrid.fuse.session import BargingLock, EagerWait


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_the_holder_may_take_the_lock_again_past_those_who_wait() -> None:
    lock = BargingLock()
    order: list[str] = []

    async def wait_for_it() -> None:
        async with lock:
            order.append("other")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait_for_it)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            async with lock:
                order.append("holder")
    assert order == ["holder"] * 3 + ["other"]


async def test_whoever_waits_gets_the_lock_while_the_holder_does_something_else() -> None:
    lock = BargingLock()
    done = trio.Event()

    async def wait_for_it() -> None:
        async with lock:
            done.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(wait_for_it)
                await trio.testing.wait_all_tasks_blocked()
            await done.wait()


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_is_forgotten_and_nobody_shares(seed: int) -> None:
    """Workers as pyfuse3 has them, some cancelled at any point: the lock goes on."""
    lock = BargingLock()
    chance = random.Random(seed)
    inside = served = 0

    async def worker(scope: trio.CancelScope) -> None:
        nonlocal inside, served
        with scope:
            while served < 300:
                async with lock:
                    inside += 1
                    assert inside == 1
                    try:
                        if chance.random() < 0.5:
                            await trio.lowlevel.checkpoint()
                    finally:
                        inside -= 1
                        served += 1
                if chance.random() < 0.3:
                    await trio.lowlevel.checkpoint()

    scopes = [trio.CancelScope() for _ in range(6)]

    async def cancel_some() -> None:
        for scope in scopes[1:]:
            for _ in range(chance.randrange(40)):
                await trio.lowlevel.checkpoint()
            scope.cancel()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(worker, scope)
            nursery.start_soon(cancel_some)
    assert served >= 300


async def test_waiting_ends_when_there_is_something_to_read(pipe: tuple[int, int]) -> None:
    wait, (reader, writer) = EagerWait(), pipe
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait.wait_readable, reader)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"x")
        os.read(reader, 1)
    os.write(writer, b"x")
    await wait.wait_readable(reader)


async def test_a_busy_session_leaves_turns_to_others(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, (reader, writer) = EagerWait(), pipe
    os.write(writer, b"x")  # always readable
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    now = 0

    def clock() -> int:
        nonlocal now
        now += session._TURN_NS // 10
        return now

    monkeypatch.setattr(session.time, "perf_counter_ns", clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(200):
            await wait.wait_readable(reader)
        nursery.cancel_scope.cancel()
    assert 10 < turns < 100


async def test_waiting_can_be_cancelled(pipe: tuple[int, int]) -> None:
    with trio.move_on_after(0.01) as scope:
        await EagerWait().wait_readable(pipe[0])
    assert scope.cancelled_caught


def test_pyfuse3_gets_its_own_tools_back() -> None:
    with session._lent_tools():
        assert pyfuse3.trio.Lock is BargingLock
        assert pyfuse3.trio.lowlevel.current_task is trio.lowlevel.current_task
        assert pyfuse3.trio.ClosedResourceError is trio.ClosedResourceError
    assert pyfuse3.trio is trio


def test_reads_that_hang_do_not_hold_up_others(bench: MountBench, images: ImageMaker) -> None:
    """More hanging reads than pyfuse3 starts with workers, and quick ones beside them."""
    raw = images.get("none")
    truth = raw.read_bytes()
    record = bench.mount(raw, "--hang-at", f"{2 * MIB}-{3 * MIB}")
    program = "import os,sys; os.pread(os.open(sys.argv[1], os.O_RDONLY), 512, int(sys.argv[2]))"
    hanging = [
        subprocess.Popen([sys.executable, "-c", program, record["file"], str(2 * MIB + 4096 * n)])
        for n in range(4)
    ]
    try:
        poll_until(lambda: all(_is_reading(child.pid) for child in hanging), "hanging reads")
        descriptor = os.open(record["file"], os.O_RDONLY)
        chance = random.Random(3)
        for _ in range(300):
            offset = chance.randrange(2 * MIB - 4096)
            assert os.pread(descriptor, 4096, offset) == truth[offset : offset + 4096]
        os.close(descriptor)
        assert all(child.poll() is None for child in hanging)
    finally:
        # A read that the server has taken on can only be ended together with the server.
        os.kill(record["pid"], signal.SIGKILL)
        bench.succeed("umount", record["id"])
        for child in hanging:
            child.wait(10)


def _is_reading(pid: int) -> bool:
    """Whether the process waits in the kernel for an answer of FUSE."""
    try:
        with open(f"/proc/{pid}/wchan") as file:
            where = file.read()
        with open(f"/proc/{pid}/stack") as file:
            where += file.read()
    except OSError:
        return False
    return "fuse" in where or "request_wait_answer" in where
