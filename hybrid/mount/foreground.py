"""``hybrid mount --foreground``: stay until the mount ends, or end it on SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import os
import signal

from hybrid.errors import BusyError, SystemSupportError
from hybrid.mount.detach import detach
from hybrid.mount.last_flush import failure_of
from hybrid.mount.state import MountRecord

logger = logging.getLogger(__name__)

SUPERVISED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def supervise(record: MountRecord) -> None:
    """Returns when the mount has been taken away, by us or anybody.

    A signal detaches. If the mount is busy then, it stays, and so do we: the next signal tries
    again. Raises SystemSupportError if the server died under the mount. Call it in the process
    that attached: that one has SUPERVISED_SIGNALS blocked since then.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
    try:
        while (status := _server_exit(record)) is None:
            if signal.sigwait(SUPERVISED_SIGNALS) != signal.SIGCHLD:
                _detach(record)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
    if status != 0:
        raise SystemSupportError(
            f"the server of {record.mountpoint or record.exposed} died "
            f"({'signal' if status < 0 else 'exit code'} {abs(status)})",
            hint=f"its log is {record.log}; clean up with `hybrid umount {record.id}`",
        )
    if failure_of(record) is not None:
        detach(record)  # raises it


def _server_exit(record: MountRecord) -> int | None:
    """Exit code of the server (negative: a signal), None while it runs."""
    pid, status = os.waitpid(record.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _detach(record: MountRecord) -> None:
    logger.info("taking %s away", record.mountpoint or record.exposed)
    try:
        detach(record)
    except BusyError as error:
        logger.warning("%s", error)
