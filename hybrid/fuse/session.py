"""The FUSE session: making it, answering the kernel, ending it. One per process, as pyfuse3 has it.

pyfuse3 waits for requests with several worker tasks that hand a fair lock around: two turns of the
trio loop for each request, and a sleep whenever the kernel is a little slower than we are. For
reads that take microseconds this is most of their cost. ``run_session`` therefore lends pyfuse3 a
lock and a way of waiting that fit short requests. Both go in through the module name ``trio`` that
pyfuse3 looks its tools up in, as its own asyncio mode does; without that name (another version)
the session runs as pyfuse3 made it. In one run on 2 cores, from a file in direct I/O: random 4 KiB
reads at depth 1 went from 20 k to 49 k a second, at depth 16 from 52 k to 158 k.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyfuse3
import trio

from hybrid.errors import SystemSupportError
from hybrid.fuse.filesystem import DiskFilesystem

_SPIN_NS = 50_000
"""How long to look for the next request before sleeping. Waking up takes some 20 us or more."""
_HOT_NS = 200_000
"""A request that came within this time lets us look for the next one in the same way."""
_MAX_TASKS = 1000
"""Reads that may wait at the same time, each in a task; beyond that all wait."""
_TURN_NS = 300_000
"""How long other tasks (fetches, the control socket) may have to wait for their turn."""


def open_session(filesystem: DiskFilesystem, directory: Path, label: str) -> None:
    """Make the FUSE mount on ``directory``. One session per process: a limit of pyfuse3.

    ``label`` becomes the source that mount tables show.
    """
    options = set(pyfuse3.default_options) | {f"fsname={label}", "subtype=hybrid"}
    if not filesystem.writable:
        options.add("ro")
    try:
        pyfuse3.init(filesystem, str(directory), options)
    except RuntimeError as error:
        raise SystemSupportError(
            f"cannot make the FUSE mount {directory}: {error}",
            hint="run `hybrid -v mount` again, and look whether /dev/fuse can be opened",
        ) from error


def close_session() -> None:
    """End the session. A FUSE mount that still stands is taken away (detached).

    libfuse closes its kernel channel first, so that this cannot wait for our own answer.
    """
    pyfuse3.close(unmount=True)


async def run_session() -> None:
    """Answer the kernel until the FUSE mount is gone, or until cancelled."""
    with _lent_tools():
        await pyfuse3.main(max_tasks=_MAX_TASKS)


class BargingLock:
    """A lock that its last holder may take again at once, past those who wait.

    A worker answers a read from memory without an await and comes back for the next request; the
    others need not be woken for that. Whoever waits is woken once when the lock is let go, and
    looks when the trio loop gets its turn, that is when the holder awaits something or ends: a
    request that waits for the network thus never keeps the next one from being taken.
    Invariant: while the lock is free and somebody waits, a woken task is on its way.
    """

    def __init__(self) -> None:
        self._held = False
        self._woken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            try:
                await self._waiting.park()
            finally:
                # Cancelled or not, the wake-up is used up; the holder's end makes the next one.
                self._woken = False
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held = False
        if not self._woken and self._waiting:
            self._woken = True
            self._waiting.unpark()


class EagerWait:
    """``trio.lowlevel`` with a ``wait_readable`` that looks for a while before it sleeps."""

    def __init__(self) -> None:
        self._polls: dict[int, select.poll] = {}
        # On a single core the kernel's side could not go on while we look.
        self._spin_ns = _SPIN_NS if len(os.sched_getaffinity(0)) > 1 else 0
        self._hot = False
        self._turn_at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Return when ``fd`` can be read; mostly without a checkpoint while requests come fast."""
        start = time.perf_counter_ns()
        if start >= self._turn_at:
            await trio.lowlevel.checkpoint()
            start = time.perf_counter_ns()
            self._turn_at = start + _TURN_NS
        poll = self._polls.get(fd) or self._register(fd)
        until = start + (self._spin_ns if self._hot else 0)
        while not poll.poll(0):
            if time.perf_counter_ns() >= until:
                await trio.lowlevel.wait_readable(fd)
                now = time.perf_counter_ns()
                self._hot = now - start < _HOT_NS
                self._turn_at = now + _TURN_NS
                return

    def _register(self, fd: int) -> select.poll:
        poll = self._polls[fd] = select.poll()
        poll.register(fd, select.POLLIN)
        return poll


class LentTrio:
    """What pyfuse3 finds under the name ``trio``."""

    Lock = BargingLock

    def __init__(self) -> None:
        self.lowlevel = EagerWait()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


@contextmanager
def _lent_tools() -> Iterator[None]:
    module: Any = pyfuse3
    if getattr(module, "trio", None) is not trio:
        yield
        return
    module.trio = LentTrio()
    try:
        yield
    finally:
        module.trio = trio
