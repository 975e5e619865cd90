"""A new layer, from a stack of layers to a finished file: plan, uuid, wrappers, digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from hybrid.build.blob_writer import Wrapping, write_blob
from hybrid.build.compact import (
    Advance,
    Below,
    LayerPlan,
    LayerText,
    Put,
    Stack,
    plan_layer,
    write_layer,
)
from hybrid.build.runs import Runs
from hybrid.core.device import SECTOR
from hybrid.core.zfile import MAX_BLOCKS
from hybrid.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class LayerJob:
    """What a layer is made of, and how."""

    stack: Stack
    size: int
    """Of the disk, in bytes."""
    wrapping: Wrapping
    text: LayerText = field(default_factory=LayerText)
    below: Below | None = None
    """None: not known; all that hides something is kept."""
    free: Runs | None = None
    """Sectors that the file system does not use."""


@dataclass(frozen=True)
class WrittenLayer:
    """A finished layer. Sizes in bytes."""

    digest: str
    size: int
    uuid: str
    parent_uuid: str
    virtual_size: int
    data_bytes: int
    """Of the disk, that it holds."""
    zero_bytes: int
    """Of the disk, that it says are zero."""

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "size": self.size,
            "uuid": self.uuid,
            "parent_uuid": self.parent_uuid or None,
            "virtual_size": self.virtual_size,
            "data_bytes": self.data_bytes,
            "zero_bytes": self.zero_bytes,
        }


class Watcher:
    """Told how the work goes on. This one does not care."""

    def begin(self, what: str, total: int) -> Advance:
        """``total`` bytes are going to be dealt with; the result is told of each part of them."""
        return lambda count: None


async def make_layer(job: LayerJob, file: BinaryIO, watcher: Watcher | None = None) -> WrittenLayer:
    """Write the layer to a new file, which can be read and sought.

    Raises what ``plan_layer``, ``write_layer`` and ``write_blob`` raise, and UsageError for a disk
    that is no whole number of sectors.
    """
    if job.size % SECTOR:
        raise UsageError(f"{job.size} bytes are not whole sectors of {SECTOR} bytes")
    watcher = watcher or Watcher()
    total = SECTOR * sum(
        end - start
        for start, end in zip(job.stack.segments.starts, job.stack.segments.ends, strict=True)
    )
    plan = await plan_layer(
        job.stack, job.size, below=job.below, free=job.free, advance=watcher.begin("reading", total)
    )
    _check_blocks(plan.data_bytes, job)
    uuid = job.text.uuid or plan.derive_uuid(job.text)
    text = LayerText(uuid.upper(), job.text.parent_uuid, job.text.parent, job.text.user_tag)
    produce = _producer(job.stack, plan, text, watcher.begin("writing", plan.data_bytes))
    blob = await write_blob(produce, job.wrapping, file)
    return WrittenLayer(
        blob.digest,
        blob.size,
        uuid.upper(),
        text.parent_uuid.upper(),
        job.size,
        plan.data_bytes,
        plan.zeros.sectors() * SECTOR,
    )


def _check_blocks(data_bytes: int, job: LayerJob) -> None:
    """Refuse before anything is written what could not be read again."""
    wrapping = job.wrapping
    if wrapping.compress != "none" and data_bytes > MAX_BLOCKS * wrapping.block_size:
        raise UnsupportedError(
            f"{job.stack.name} has {data_bytes} bytes of data, too many for one layer with blocks "
            f"of {wrapping.block_size} bytes",
            hint="use larger blocks, with --block-size",
        )


def _producer(
    stack: Stack, plan: LayerPlan, text: LayerText, advance: Advance
) -> Callable[[Put], Any]:
    async def produce(put: Put) -> None:
        await write_layer(stack, plan, text, put, advance)

    return produce
