"""The process that lends a disk to a command which is in a trio run, and so cannot fork servers.

It is forked off before that run, and does what ``hybrid mount --rw --no-mount`` and ``hybrid
snapshot`` do, one order after the other: a JSON object per line, and one for an answer.

    {"attach": {"files": [PATH...]}}                            ->  {"device": PATH}
    {"attach": {"blobs": [[DIGEST, SIZE]...]}}                  ->  {"device": PATH}
    {"seal": true}      what was written becomes a layer        ->  {"sealed": PATH}
    {"trouble": true}   what the server said last that is bad   ->  {"said": TEXT}
    {"detach": true}                                            ->  {}

or {"error": ...}, as ``errors.encode_error`` has it. Orders have a "number", which their answers
repeat: the borrower may have been interrupted while it waited for an earlier one.

Once nobody is at the other end, however that has come, it takes all away: the disk, and the
directory with all that was written to it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.build.convert.lower import LowerBlobs
from hybrid.build.convert.result import ConvertedLayer
from hybrid.core.device import Device
from hybrid.core.disk import LayeredDevice
from hybrid.core.upper_directory import UpperDirectory, open_sealed
from hybrid.core.upper_manifest import Manifest
from hybrid.errors import BusyError, HybridError, SystemSupportError, encode_error
from hybrid.fuse.loop import LoopDevice, attach_loop
from hybrid.mount.attach import MountRequest, attach, last_trouble
from hybrid.mount.changes import Changes
from hybrid.mount.detach import detach, force_end
from hybrid.mount.live_point import snapshot
from hybrid.mount.origin import OpenDevice
from hybrid.mount.state import MountRecord

logger = logging.getLogger(__name__)

_LINE_BYTES = 1 << 20
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 0.05
_DIED = "the server of the disk died"
_DYING_SECONDS = 0.5
"""The kernel closes its files first, and only then it is dead."""
_BUSY_SECONDS = 20.0
"""How long others (udev, say) may look at a disk that is to be taken away."""
_ORPHAN_SECONDS = 600.0
"""The same once the borrower is dead: the kernel may still write back what it has written."""


@dataclass(frozen=True)
class Lending:
    """What is lent. ``directory``: where the disk and its changes are kept."""

    image: str
    """As the user sees it in `hybrid list`."""
    directory: Path
    blobs: LowerBlobs


class LenderEnd:
    """The borrower's end: a connected socket, and the process at the other one."""

    def __init__(self, channel: socket.socket, pid: int, directory: Path) -> None:
        self.channel = channel
        self.directory = directory
        self._pid = pid

    def close(self) -> None:
        """Let the lender take all away, and wait for that; while somebody else uses the disk, only
        for some seconds: it goes on alone."""
        self.channel.close()
        deadline = time.monotonic() + _BUSY_SECONDS
        while not os.waitpid(self._pid, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(_RETRY_SECONDS)


def fork_lender(image: str, blobs: LowerBlobs, scratch: Path) -> LenderEnd:
    """Start it. Call this outside any trio run, in a process with one thread.

    Raises OSError if there can be no directory in ``scratch``.
    """
    ours, theirs = socket.socketpair()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        # Servers have another working directory.
        directory = Path(tempfile.mkdtemp(prefix="hybrid-disk-", dir=scratch.absolute()))
        pid = os.fork()
        if pid == 0:
            ours.close()
            _run(theirs, Lending(image, directory, blobs))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return LenderEnd(ours, pid, directory)


def _run(channel: socket.socket, lending: Lending) -> None:
    """Never returns. Ctrl-C is for the borrower, whose end is heard here."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        # Whoever reads what the command says waits for its end, not for ours.
        _let_go(*{0, 1} - {channel.fileno()})
        _Lender(channel, lending).serve()
    except BaseException:
        logger.exception("the process that lends disks failed")
    finally:
        os._exit(0)


def _let_go(*numbers: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(nothing, number)
    os.close(nothing)


class _Lender:
    def __init__(self, channel: socket.socket, lending: Lending) -> None:
        self._channel = channel
        self._lending = lending
        self._upper = lending.directory / "upper"
        self._sealed = 0
        self._record: MountRecord | None = None
        self._loop: LoopDevice | None = None
        self._orders: dict[str, Callable[[Any], dict[str, Any]]] = {
            "attach": self._attach,
            "seal": self._seal,
            "trouble": self._trouble,
            "detach": self._detach,
        }

    def serve(self) -> None:
        try:
            while (line := self._next_line()) is not None:
                self._channel.sendall(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
        except ConnectionError:
            logger.debug("the borrower is gone")
        finally:
            try:
                self._take_all_away()
            except HybridError as error:
                logger.warning("%s", error)

    def _next_line(self) -> bytes | None:
        received = b""
        while not received.endswith(b"\n"):
            if not select.select([self._channel], [], [], _LOOK_SECONDS)[0]:
                self._look_after_server()
                continue
            part = self._channel.recv(_LINE_BYTES)
            if not part:
                return None
            received += part
        return received

    def _look_after_server(self) -> None:
        """Without a server a SCSI disk keeps whoever uses it waiting for ever."""
        if self._record is not None and not self._record.server.is_alive():
            with suppress(HybridError):
                force_end(self._record)

    def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        number = order.pop("number")
        ((name, value),) = order.items()
        return self._carry_out(name, value) | {"number": number}

    def _carry_out(self, name: str, value: object) -> dict[str, Any]:
        try:
            return self._orders[name](value)
        except HybridError as error:
            return {"error": encode_error(error)}
        except KeyboardInterrupt:
            return {"error": encode_error(SystemSupportError("terminated"))}
        except Exception as error:
            logger.exception("lending a disk")
            bug = SystemSupportError(f"internal error: {type(error).__name__}: {error}")
            return {"error": encode_error(bug)}

    def _attach(self, lowers: dict[str, Any]) -> dict[str, Any]:
        upper = self._upper
        request = MountRequest(
            self._lending.image, self._opener(lowers, upper), changes=Changes(str(upper))
        )
        record = self._record = attach(request)
        self._sealed = 0
        if record.device:
            return {"device": record.device}
        self._loop = attach_loop(record.disk, writable=True)
        return {"device": str(self._loop.path)}

    def _opener(self, lowers: dict[str, Any], upper: Path) -> OpenDevice:
        image, blobs = self._lending.image, self._lending.blobs

        async def open_device() -> Device:
            async with AsyncExitStack() as stack:
                if "files" in lowers:
                    layers = [await open_sealed(Path(file)) for file in lowers["files"]]
                    lower = LayeredDevice(layers, image)
                else:
                    wanted = [ConvertedLayer(digest, size) for digest, size in lowers["blobs"]]
                    lower = await blobs.open(wanted, stack)
                stack.push_async_callback(lower.aclose)
                UpperDirectory.create(upper, Manifest(image, "", lower.identity(), lower.size))
                disk = await UpperDirectory(upper).open(lower, image)
                stack.pop_all()  # what it needs lives as long as this process, which serves it
            return disk

        return open_device

    def _seal(self, value: object) -> dict[str, Any]:
        record = self._attached()
        try:
            sealed = snapshot(record)
        except HybridError:
            if record.server.wait_gone(_DYING_SECONDS):
                raise SystemSupportError(_DIED) from None
            raise
        self._sealed += 1
        if len(UpperDirectory(self._upper).sealed) != self._sealed:
            raise BusyError(
                f"somebody else made a snapshot of {record.id}, and has part of a layer in it",
                hint="convert again, and leave the disk alone meanwhile",
            )
        return {"sealed": str(sealed)}

    def _trouble(self, value: object) -> dict[str, Any]:
        record = self._attached()
        if record.server.wait_gone(_DYING_SECONDS):
            return {"said": _DIED}
        return {"said": last_trouble(record)}

    def _detach(self, value: object) -> dict[str, Any]:
        self._take_away(_BUSY_SECONDS)
        # The next image has a disk of its own, and needs the space.
        shutil.rmtree(self._upper, ignore_errors=True)
        return {}

    def _attached(self) -> MountRecord:
        assert self._record is not None, "a disk is attached"
        return self._record

    def _take_all_away(self) -> None:
        try:
            self._take_away(_BUSY_SECONDS)
        except BusyError:
            # The command has ended without us.
            _let_go(2)
            self._take_away(_ORPHAN_SECONDS)
        shutil.rmtree(self._lending.directory, ignore_errors=True)

    def _take_away(self, seconds: float) -> None:
        if self._record is None:
            return
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        deadline = time.monotonic() + seconds
        while True:
            # Nobody writes back any more what waits for a dead one.
            self._look_after_server()
            try:
                detach(self._record)
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
        self._record = None
