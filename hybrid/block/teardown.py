"""Taking a TCMU disk away within seconds, whether its handler lives, is dead, or dies meanwhile.

Removing the LUN waits for every command in flight, and sd sends SYNCHRONIZE CACHE on top. With
nobody to answer, the kernel's own time-outs make that 97 s, or for ever if a resume that was cut
short left the device blocked. So the ring is emptied with errors again and again, while a child
removes the LUN (spec: tcmu 6).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hybrid.block.configfs import block_device, remove_backstore, reset_ring, unexport
from hybrid.block.names import Target
from hybrid.core.bounded import BoundedTask
from hybrid.errors import HybridError, TimeoutExpiredError

logger = logging.getLogger(__name__)

_RESET_SECONDS = 0.3
"""How often the ring is emptied: each step of the removal sends one more command."""


def take_down(target: Target, handler_alive: Callable[[], bool], seconds: float = 30.0) -> None:
    """Remove disk, loopback target and backstore, as far as they are there.

    ``handler_alive`` is asked every 0.3 s. While it says False, commands in flight fail with EIO;
    a living handler is trusted to answer. Nothing of the disk may be mounted. Never call it in the
    handler's own process. Raises BusyError (in use, by whom the kernel does not tell),
    PermissionNeededError, and TimeoutExpiredError after ``seconds``; then the removal goes on in
    the background for as long as the kernel holds it up.
    """
    deadline = time.monotonic() + seconds
    _unblock(target)
    task = BoundedTask(f"the removal of {target.name}", lambda: _remove(target))
    while True:
        if not handler_alive():
            fail_pending(target)
        try:
            task.wait(_RESET_SECONDS)
            return
        except TimeoutExpiredError:
            if time.monotonic() > deadline:
                task.abandon()
                raise TimeoutExpiredError(
                    f"the kernel did not remove {target.name} within {seconds:g} seconds",
                    hint="it waits for commands that the server does not answer; end the server",
                ) from None


def fail_pending(target: Target) -> None:
    """Let every command that is in the ring fail with EIO, now; a device without one is fine."""
    _unblock(target)
    try:
        reset_ring(target, 2)
    except HybridError as error:
        logger.debug("the ring was not emptied: %s", error)


def _unblock(target: Target) -> None:
    """A blocked device refuses commands, which sd tries again for ever."""
    try:
        block_device(target, False)
    except HybridError as error:
        # Gone already, or never enabled.
        logger.debug("not unblocked: %s", error)


def _remove(target: Target) -> None:
    unexport(target)
    remove_backstore(target)
