"""The image below a set of changes: what it has to do with the layer that is made of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from hybrid.build.changes import ChangeSet
from hybrid.build.compact import Below
from hybrid.build.ext4_bitmap import CannotTellError
from hybrid.build.free_space import find_free_space
from hybrid.build.runs import Runs
from hybrid.core.disk import LayeredDevice
from hybrid.errors import FormatError, HybridError

logger = logging.getLogger("hybrid")

OpenBase = Callable[[], Awaitable[LayeredDevice]]
HEAD_BYTES = 128 * 1024
"""Of the disk, in which file systems say what they are."""


@dataclass(frozen=True)
class Surroundings:
    """What was learned from the image and from the file system on the merged disk."""

    below: Below | None = None
    """None: it is not known what lies below."""
    parent_uuid: str = ""
    free: Runs | None = None
    """Sectors that the file system does not use; None if that is not known."""
    head: bytes = b""
    """The first bytes of the merged disk; "" if it is not known."""


async def look_around(
    changes: ChangeSet, open_base: OpenBase | None, *, required: bool = False
) -> Surroundings:
    """Open the image (None: there is none), put the changes on it, and look.

    An image that cannot be opened is told of, and then nothing is left out of the layer; with
    ``required`` that is an error. Raises FormatError if the image is another one than it was.
    """
    async with AsyncExitStack() as stack:
        if open_base is None:
            disk = await changes.open(stack)
            return await _look(disk, Below.nothing(), _parent_of(disk))
        try:
            base = await open_base()
        except HybridError as error:
            if required:
                raise
            logger.warning(
                "the image below cannot be read (%s): blocks that are free are kept", error
            )
            return Surroundings()
        stack.push_async_callback(base.aclose)
        if changes.lower and base.identity() != changes.lower:
            raise FormatError(
                f"{changes.name} was made over another disk than {base.name} is now",
                hint="the layers of that image were replaced: bring back those it had",
            )
        below = Below.of(base.segments)
        parent = base.layers[-1].record.uuid if base.layers else ""
        await changes.put_on(base, stack)
        return await _look(base, below, parent)


async def _look(disk: LayeredDevice, below: Below, parent_uuid: str) -> Surroundings:
    head = bytes(await disk.pread(0, min(HEAD_BYTES, disk.size)))
    return Surroundings(below, parent_uuid, await _free_space(disk), head)


async def _free_space(disk: LayeredDevice) -> Runs | None:
    try:
        return await find_free_space(disk.pread, disk.size)
    except CannotTellError as error:
        logger.warning("the free blocks of the ext4 in it are kept: %s", error)
    except HybridError as error:
        logger.warning("the image below cannot be read (%s): blocks that are free are kept", error)
    return None


def _parent_of(disk: LayeredDevice) -> str:
    return disk.layers[0].record.parent_uuid if disk.layers else ""
