"""The end of a writable mount: the server's last flush, and what commands know of it.

A server whose disk was written to flushes it when all is over, however long that takes, and then
removes its state directory. Two files in that directory tell of it:

    flushing   the server is at it
    failure    it did not succeed, as ``errors.encode_error`` has it; then the directory stays until
               ``hybrid umount`` has told the user

So no command needs to end such a server: it waits, and says for what.
"""

from __future__ import annotations

import json
import logging
import time

from hybrid.core.device import Device
from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    TimeoutExpiredError,
    decode_error,
    encode_error,
)
from hybrid.mount.state import MountRecord

_LOOK_SECONDS = 0.5
_NOTICE_SECONDS = 5.0
_SILENT_SECONDS = 30.0
"""How long a server that nobody needs may live on without saying that it flushes."""

logger = logging.getLogger(__name__)


async def flush_and_close(device: Device, record: MountRecord) -> bool:
    """In the server, shielded from cancellation: make all durable. False: that failed, as noted."""
    record.flushing.touch(mode=0o600)
    failure = await _failure_of_end(device)
    if failure is None:
        return True
    logger.error("%s", failure)
    record.failure.touch(mode=0o600)
    record.failure.write_text(json.dumps(encode_error(failure)))
    return False


async def _failure_of_end(device: Device) -> HybridError | None:
    failures: list[Exception] = []
    for step in (device.flush, device.aclose):
        try:
            await step()
        except Exception as error:
            if not isinstance(error, HybridError):
                logger.exception("the end of %s", device.name)
            failures.append(error)
    if not failures:
        return None
    first = failures[0]
    reason = first.message if isinstance(first, HybridError) else f"a bug: {first!r}"
    kind = type(first) if isinstance(first, HybridError) else FormatError
    return kind(
        f"the last changes of {device.name} may be lost: {reason}",
        hint="what was synchronised before is safe",
    )


def failure_of(record: MountRecord) -> HybridError | None:
    """What went wrong with the last flush of a server that has ended, if anything did."""
    try:
        return decode_error(json.loads(record.failure.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return FormatError(f"the last changes of {record.image} may be lost", hint=f"{record.log}")


class Waiting:
    """Tells the user, every few seconds, what a command waits for."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def tell(self, what: str) -> None:
        if time.monotonic() - self._told >= _NOTICE_SECONDS:
            self._told = time.monotonic()
            logger.info("%s (%d s until now)", what, self.seconds)


def wait_flushed(record: MountRecord, silent_seconds: float = _SILENT_SECONDS) -> None:
    """Return when the server, which nobody needs any more, has flushed and ended.

    Raises BusyError if it is stopped, and TimeoutExpiredError if it lives on and does not say that
    it is flushing. It goes on in both cases.
    """
    waiting = Waiting()
    while not record.server.wait_gone(_LOOK_SECONDS):
        check_not_stopped(record)
        if record.flushing.exists():
            waiting.tell(f"server {record.pid} writes the last changes of {record.image} to disk")
        elif waiting.seconds > silent_seconds:
            raise TimeoutExpiredError(
                f"server {record.pid} of {record.image} does not end",
                hint=f"its log is {record.log}; to give it up: kill -9 {record.pid}, and once more",
            )


def check_not_stopped(record: MountRecord) -> None:
    """Raises BusyError for a server that is stopped: it has changes that are nowhere else."""
    if record.server.state() == "T":
        raise BusyError(
            f"server {record.pid} of {record.image} is stopped, and has changes to write",
            hint=f"kill -CONT {record.pid}, and once more",
        )
