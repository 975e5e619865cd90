"""The TCMU server: joins the ring of one device with a Device, in one trio task tree.

The main task takes all new commands, answers at once what needs no wait, and starts a task for each
command that must wait (network, a flush): commands are completed in any order, so that a read that
waits for the network never holds up others. Only the main task touches the ring's entries: what the
other tasks have finished it completes together, and it tells the kernel once for each batch.

There is no limit of our own on commands in flight. The kernel's suffice: tcm_loop has at most 1024
commands outstanding, and their data must fit into the ring's data area.

**Ending.** When the device is gone, or on cancellation, commands that are not completed stay as
they are: the kernel repeats them for the next server after a reset of the ring. A write may then
have been done in part, or twice, which the repetition makes good.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import trio

from hybrid.block import commands
from hybrid.block.failures import sense_of
from hybrid.block.pacing import Pacing, now
from hybrid.block.ring import Command, Ring, RingError
from hybrid.block.scsi import decode
from hybrid.block.scsi_unit import LogicalUnit, Op, Request
from hybrid.block.sense import CheckCondition, hardware_error, invalid_field
from hybrid.core.device import Buffer, Device

_BATCH = 32
"""Commands taken off the ring at a time."""
_CHECK_CONDITION = 2
_READ = Op.READ
_FIXED_DATA_OUT = (Op.WRITE, Op.WRITE_SAME, Op.VERIFY)
"""Requests that need all of their data-out. Parameter lists are checked where they are read."""

logger = logging.getLogger(__name__)


class UioDevice(Protocol):
    """What the server needs of ``hybrid.block.uio.Uio``."""

    fd: int
    view: memoryview

    def notify(self) -> None: ...

    def consume(self) -> bool: ...


class RingServer:
    """Serves ``device`` as the logical unit ``unit`` through the ring of ``uio``.

    ``spin_ns`` is how long to look for the next command before sleeping; 0: not at all, None:
    measured. Raises RingError where the ring is not one that can be served.
    """

    def __init__(
        self, device: Device, unit: LogicalUnit, uio: UioDevice, *, spin_ns: int | None = None
    ) -> None:
        self.commands = 0
        """Commands taken off the ring."""
        self.reads = 0
        self.writes = 0
        self.read_errors = 0
        """Reads that failed."""
        self.batches = 0
        """How often new commands were found on the ring."""
        self.sleeps = 0
        self._device = device
        self._read_nowait = device.read_parts_nowait
        self._unit = unit
        self._uio = uio
        self._ring = Ring(uio.view)
        self._pacing = Pacing(spin_ns)
        self._untold = False
        """Whether commands are completed that the kernel has not been told about."""
        self._waiting = 0
        """Tasks that run."""
        self._finished: list[tuple[Command, Request, Sequence[Buffer] | Exception]] = []
        self._nap = trio.CancelScope()

    async def serve(self) -> None:
        """Answer the kernel until the device is gone, or until cancelled.

        Begins with the commands that a former server left: no event comes for those. Raises
        RingError, already logged, if the ring breaks.
        """
        await self._pacing.measure()
        failure: RingError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._loop(nursery)
            except RingError as error:
                logger.error("cannot go on serving %s: %s", self._device.name, error)
                failure = error
            finally:
                self._tell()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let go of the map, so that the uio device can be closed. After ``serve``."""
        self._ring.close()

    async def _loop(self, nursery: trio.Nursery) -> None:
        ring, pacing = self._ring, self._pacing
        while True:
            if ring.has_new:
                pending = deque(ring.take(_BATCH))
                self.batches += 1
                self.commands += len(pending)
                while pending:
                    self._answer(pending, nursery)
                    if pending:
                        # The kernel goes on meanwhile with what is complete.
                        self._tell()
                        await pacing.give_turn()
            if self._finished:
                self._complete_finished()
            self._tell()
            if now() >= pacing.turn_at:
                await pacing.give_turn()
            elif not pacing.look(ring) and not await self._sleep():
                return

    def _answer(self, pending: deque[Command], nursery: trio.Nursery) -> None:
        """Answer commands until none is left or the turn is over."""
        unit, read, turn_at = self._unit, self._read_nowait, self._pacing.turn_at
        parts: Sequence[Buffer] | None
        while pending:
            command = pending.popleft()
            request = None
            try:
                request = decode(unit, command.cdb)
                if request.op is _READ and not request.fua:
                    parts = read(request.offset, request.length)
                else:
                    parts = self._run_nowait(command, request)
            except Exception as error:
                self._fail(command, request, error)
            else:
                if parts is None:
                    self._waiting += 1
                    nursery.start_soon(self._run, command, request)
                else:
                    self._succeed(command, request, parts)
            if now() >= turn_at:
                return

    def _run_nowait(self, command: Command, request: Request) -> Sequence[Buffer] | None:
        data = self._data_out(command, request)
        try:
            return commands.run_nowait(self._device, self._unit, request, data)
        finally:
            _release(data)

    async def _run(self, command: Command, request: Request) -> None:
        """A task: carry out one command that waits, and leave the result to the main task."""
        data: list[memoryview] = []
        outcome: Sequence[Buffer] | Exception
        try:
            data = self._data_out(command, request)
            outcome = await commands.run(self._device, self._unit, request, data)
        except Exception as error:
            outcome = error
        finally:
            _release(data)
        self._waiting -= 1
        self._finished.append((command, request, outcome))
        self._nap.cancel()

    def _data_out(self, command: Command, request: Request) -> list[memoryview]:
        wanted = commands.data_out_length(self._unit, request)
        views = self._ring.views(command, wanted) if wanted else []
        if request.op in _FIXED_DATA_OUT and sum(map(len, views)) < wanted:
            _release(views)
            raise CheckCondition(invalid_field(0))
        return views

    def _complete_finished(self) -> None:
        for command, request, outcome in self._finished:
            if isinstance(outcome, Exception):
                self._fail(command, request, outcome)
            else:
                self._succeed(command, request, outcome)
        self._finished.clear()

    def _succeed(self, command: Command, request: Request, parts: Sequence[Buffer]) -> None:
        copied = self._ring.put(command, parts) if parts else 0
        if request.op is _READ:
            self.reads += 1
            if copied != request.length and sum(map(len, parts)) != request.length:
                self._fail(command, request, ValueError("a read gave another length"))
                return
        elif request.op == Op.WRITE:
            self.writes += 1
        self._ring.complete(command.cmd_id, read_length=copied)
        self._untold = True

    def _fail(self, command: Command, request: Request | None, error: Exception) -> None:
        if command.malformed:
            logger.error("malformed command of %s: %s", self._device.name, command.malformed)
            sense = hardware_error()
        else:
            sense = sense_of(error, self._unit, request, self._device.name)
        if request is not None and request.op is _READ:
            self.read_errors += 1
        self._ring.complete(command.cmd_id, _CHECK_CONDITION, sense)
        self._untold = True

    def _tell(self) -> None:
        """Tell the kernel about completed commands, if there are any."""
        if self._untold:
            self._untold = False
            self._uio.notify()

    async def _sleep(self) -> bool:
        """Wait for new commands or finished tasks; False: the device is gone."""
        self.sleeps += 1
        fd = self._uio.fd
        if self._waiting:
            with trio.CancelScope() as self._nap:
                await trio.lowlevel.wait_readable(fd)
        else:
            await trio.lowlevel.wait_readable(fd)
        self._pacing.woken()
        return self._uio.consume()


def _release(views: list[memoryview]) -> None:
    """The map of the ring cannot be closed while views of it live."""
    for view in views:
        view.release()
