"""An open sealed layer: tar( zfile( lsmt ) ), each wrapper optional (spec: tar-and-blob 7).

``hybrid.core.opening`` opens it from the tail of its blob. What stands at the head (tar headers,
ZFile and LSMT headers) is checked before the first byte of the layer is served; for a remote blob
that is when the layer is read for the first time.
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from hybrid.core import lsmt, zfile
from hybrid.core.device import Buffer, Source
from hybrid.core.lsmt import LayerRecord
from hybrid.core.segments import SegmentMap
from hybrid.core.stream import Stream, ZFileStream
from hybrid.core.tarball import parse_tar
from hybrid.errors import FormatError, UnsupportedError

logger = logging.getLogger("hybrid.core")


class Layer:
    """An open sealed layer. Offsets are bytes of its LSMT stream.

    ``segments`` is the index; whoever has merged it may drop it (set None) to save memory.
    """

    def __init__(
        self,
        source: Source,
        stream: Stream,
        record: LayerRecord,
        segments: SegmentMap,
        base: int,
        *,
        may_be_turbo: bool = False,
    ) -> None:
        self.name = source.name
        self.source = source
        self.stream = stream
        self.record = record
        self.segments: SegmentMap | None = segments
        self.base = base
        """Bytes of tar headers in front of the payload."""
        self._may_be_turbo = may_be_turbo
        self._head_checked = False
        self._head_lock = trio.Lock()

    def parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        """Buffers of the range, or None if that would block."""
        if not self._head_checked:
            head = self.source.pread_nowait(0, self._head_size())
            if head is None:
                return None
            try:
                self._check_head(head)
            except FormatError:
                return None  # the waiting path asks the origin again
        return self.stream.parts_nowait(offset, length)

    async def parts(self, offset: int, length: int) -> list[Buffer]:
        """Buffers of the range. Raises FormatError for damage that the origin has too."""
        if not self._head_checked:
            await self.check_head()
        return await self.stream.parts(offset, length)

    async def check_head(self) -> None:
        """Check what stands in front of the data. Raises FormatError or UnsupportedError."""
        async with self._head_lock:
            if self._head_checked:
                return
            size = self._head_size()
            try:
                self._check_head(await self.source.pread(0, size))
            except FormatError as error:
                if not await self.source.evict(0, size):
                    raise
                logger.warning("%s; fetching it again", error)
                self._check_head(await self.source.pread(0, size))

    def describe(self) -> dict[str, Any]:
        """What the wrappers and the LSMT record say. Sizes in bytes."""
        record = self.record
        described: dict[str, Any] = {
            "size": self.source.size,
            "wrapper": "tar" if self.base else "none",
            "compression": "none",
        }
        if isinstance(self.stream, ZFileStream):
            blocks = self.stream.blocks
            described["compression"] = blocks.algorithm
            described["block_size"] = blocks.block_size
            described["checksums"] = blocks.verify
        return described | {
            "lsmt_size": self.stream.size,
            "virtual_size": record.virtual_size,
            "uuid": record.uuid or None,
            "parent_uuid": record.parent_uuid or None,
            "user_tag": record.user_tag.decode("utf-8", "replace"),
            "index_entries": record.index_size,
            "sparse": record.sparse,
        }

    async def aclose(self) -> None:
        await self.source.aclose()

    def _head_size(self) -> int:
        """Bytes of the source up to the end of the LSMT header."""
        if isinstance(self.stream, ZFileStream):
            blocks = self.stream.blocks
            return self.base + blocks.offsets[-(-lsmt.BLOCK // blocks.block_size)]
        return self.base + lsmt.BLOCK

    def _check_head(self, head: Buffer) -> None:
        view = memoryview(head)
        if isinstance(self.stream, ZFileStream):
            check_zfile_head(view, self.source, self.stream, self.base)
            blocks = self.stream.blocks
            data = view[self.base + zfile.HEADER_SIZE :]
            count = -(-lsmt.BLOCK // blocks.block_size)
            block = blocks.decode(data, 0, count)[: lsmt.BLOCK]
        else:
            _check_wrapper(view, self.source, self.base, self.stream.size)
            block = bytes(view[self.base : self.base + lsmt.BLOCK])
        header = lsmt.parse_header(block, self.name)
        if self._may_be_turbo and header.flags & lsmt.FLAG_SEALED:
            raise UnsupportedError(f"{self.name}: TurboOCI layers are not supported yet")
        self._head_checked = True


def check_zfile_head(view: memoryview, source: Source, stream: ZFileStream, base: int) -> None:
    """The tar headers and the ZFile header must fit what the tail said."""
    record = stream.blocks.record
    header = zfile.parse_header(view[base : base + zfile.HEADER_SIZE], source.name)
    zfile.check_same(header, record, source.name)
    _check_wrapper(view, source, base, record.zfile_size)


def _check_wrapper(view: memoryview, source: Source, base: int, payload_size: int) -> None:
    if not base:
        return
    member = parse_tar(view[:base], source.size, source.name)
    if (member.offset, member.size) != (base, payload_size):
        raise FormatError(
            f"{source.name}: tar says {member.size} bytes at {member.offset}, but the layer "
            f"has {payload_size} at {base}"
        )
