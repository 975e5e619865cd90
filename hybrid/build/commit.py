"""Changes become one compact layer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import BinaryIO

from hybrid.build.base import Surroundings
from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import ChangeSet
from hybrid.build.compact import LayerText
from hybrid.build.layer_file import LayerJob, Watcher, WrittenLayer, make_layer

_TAG_BYTES = 256


async def commit_layer(
    changes: ChangeSet,
    found: Surroundings,
    wrapping: Wrapping,
    message: str,
    file: BinaryIO,
    watcher: Watcher,
) -> WrittenLayer:
    """Write the changes to a new file, as one compact layer.

    Raises what ``make_layer`` and opening the changes raise.
    """
    async with AsyncExitStack() as stack:
        device = await changes.open(stack)
        text = LayerText(
            parent_uuid=found.parent_uuid,
            parent=changes.digest or changes.lower,
            user_tag=_as_tag(message),
        )
        job = LayerJob(device, device.size, wrapping, text, found.below, found.free)
        return await make_layer(job, file, watcher)


def _as_tag(message: str) -> bytes:
    """What of the message fits into the header of a layer."""
    raw = message.encode("utf-8", "surrogateescape")
    return raw if len(raw) <= _TAG_BYTES else raw[:_TAG_BYTES].decode(errors="ignore").encode()
