"""Opening a blob as a layer, or as a ZFile, with one read of its tail in the usual case.

Everything that opening needs stands at the end of a blob: ZFile index and trailer, and in front of
them, compressed, the LSMT index and trailer. So opening reads the tail once and works from there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hybrid.core import lsmt, zfile
from hybrid.core.device import Buffer, Source, check_range
from hybrid.core.layer import Layer, check_zfile_head
from hybrid.core.lsmt import LayerRecord
from hybrid.core.stream import PlainStream, Stream, ZFileStream
from hybrid.core.tarball import BLOCK as TAR_BLOCK
from hybrid.core.tarball import HEAD_SIZE, is_tar, parse_tar
from hybrid.errors import FormatError, HybridError, UnsupportedError

logger = logging.getLogger("hybrid.core")

T = TypeVar("T")

MIN_TAIL = 65536
MAX_TAIL = 8 << 20
# Behind a ZFile in tar: padding, two zero blocks, and two more from one converter.
_MAX_PADDING = TAR_BLOCK - 1 + 4 * TAR_BLOCK


async def open_layer(source: Source) -> Layer:
    """Open a blob as a layer, with one read of its tail in the usual case.

    Raises FormatError (damaged or truncated) and UnsupportedError (something else than a layer).
    The source stays the caller's to close if this fails.
    """
    return await _with_tail(source, _open)


async def open_stream(source: Source) -> tuple[ZFileStream, int]:
    """Open a ZFile, bare or in tar: the stream, and the bytes of tar headers in front of it.

    Header and wrapper are checked; what the stream holds is not looked at. Raises FormatError or
    UnsupportedError.
    """
    return await _with_tail(source, _open_zfile)


async def _with_tail(source: Source, opener: Callable[[_Tail], Awaitable[T]]) -> T:
    """Open with the tail of the source in memory; once more from the origin if that fails."""
    size = min(source.size, max(MIN_TAIL, min(MAX_TAIL, source.size // 128)))
    tail = _Tail(source, source.size - size)
    try:
        await tail.load()
        return await opener(tail)
    except (FormatError, UnsupportedError) as error:
        if not await tail.evict_all():
            raise
        logger.warning("%s; fetching it again", error)
    await tail.load()
    return await opener(tail)


async def _open_zfile(tail: _Tail) -> tuple[ZFileStream, int]:
    found = await _find_zfile(tail)
    if found is None:
        raise await _not_a_layer(tail)
    stream, base = found
    head = await tail.pread(0, base + zfile.HEADER_SIZE)
    check_zfile_head(memoryview(head), tail.source, stream, base)
    stream.source = tail.source
    return stream, base


class _Tail(Source):
    """A source whose last bytes are in memory. Used only while a layer is opened."""

    def __init__(self, source: Source, start: int) -> None:
        self.name = source.name
        self.size = source.size
        self.source = source
        self.start = start
        self.data = memoryview(b"")
        self._head = b""
        self._others: list[tuple[int, int]] = []

    async def load(self) -> None:
        """Read the tail, and forget everything else."""
        self._head = b""
        self._others.clear()
        self.data = memoryview(await self.source.pread(self.start, self.size - self.start))

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        if offset >= self.start:
            return self.data[offset - self.start : offset - self.start + length]
        return None

    async def pread(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        if offset >= self.start:
            return self.data[offset - self.start : offset - self.start + length]
        ahead = min(length, self.start - offset)
        self._others.append((offset, ahead))
        head = await self.source.pread(offset, ahead)
        return head if ahead == length else bytes(head) + bytes(self.data[: length - ahead])

    async def head(self) -> bytes:
        """The start of the source, with room for the tar headers and a payload header."""
        if not self._head:
            self._head = bytes(await self.pread(0, min(HEAD_SIZE + zfile.HEADER_SIZE, self.size)))
        return self._head

    async def evict_all(self) -> bool:
        """Forget copies of all that was read."""
        ranges = [(self.start, self.size - self.start), *self._others]
        return any([await self.source.evict(*found) for found in ranges])


async def _open(tail: _Tail) -> Layer:
    source = tail.source
    found = await _find_zfile(tail)
    stream: Stream
    if found is not None:
        stream, base = found
    else:
        stream, base = await _find_plain(tail)
    record, raw = await _read_index(stream, source.name)
    segments = lsmt.parse_index(raw, record, source.name)
    stream.source = source  # the tail need not stay in memory
    turbo = lsmt.may_be_turbo(raw, record)
    return Layer(source, stream, record, segments, base, may_be_turbo=turbo)


async def _read_index(stream: Stream, name: str) -> tuple[LayerRecord, bytes]:
    if stream.size < 2 * lsmt.BLOCK:
        raise FormatError(f"{name}: {stream.size} bytes are too few for an LSMT layer")
    block = await stream.read(stream.size - lsmt.BLOCK, lsmt.BLOCK)
    record = lsmt.parse_trailer(block, name, stream.size)
    return record, await stream.read(record.index_offset, record.index_size * lsmt.ENTRY_SIZE)


async def _find_zfile(tail: _Tail) -> tuple[ZFileStream, int] | None:
    """The ZFile stream and where its payload begins; None if this is no ZFile.

    The trailer is found by its magic in front of the tar padding. Where it is lost or damaged, a
    header that was overwritten at the end of writing has the same information.
    """
    window = bytes(tail.data[-(_MAX_PADDING + zfile.HEADER_SIZE) :])
    error: HybridError | None = None
    at = window.rfind(zfile.MAGIC)
    while at >= 0:
        end = at + zfile.HEADER_SIZE
        # A magic that something follows, or at the very start, is data or a header by chance.
        if not window[end:].strip(b"\0") and (at or len(window) < tail.size):
            try:
                record = zfile.parse_trailer(window[at:end], tail.name)
                return await _read_blocks(
                    tail, _base_of(tail, record, tail.size - len(window) + end), record
                )
            except HybridError as failure:
                error = error or failure
        at = window.rfind(zfile.MAGIC, 0, at)
    return await _find_by_header(tail, error)


def _base_of(tail: _Tail, record: zfile.ZFileRecord, end: int) -> int:
    """Where a ZFile that ends at ``end`` must begin: behind tar headers, if anything."""
    base = end - record.zfile_size
    if base % TAR_BLOCK or not 0 <= base <= HEAD_SIZE:
        raise FormatError(
            f"{tail.name}: ZFile of {record.zfile_size} bytes cannot end at byte {end}"
        )
    return base


async def _find_by_header(tail: _Tail, error: HybridError | None) -> tuple[ZFileStream, int] | None:
    """By the header at the head, and a trailer where the tar header says that the payload ends."""
    if error and lsmt.is_lsmt(tail.data[-lsmt.BLOCK :]):
        return None  # a plain layer with the ZFile magic somewhere in its last bytes
    base, size, head = await _payload(tail)
    if not zfile.is_zfile(head):
        if error:
            raise error
        return None
    record = zfile.parse_header(head[: zfile.HEADER_SIZE], tail.name)
    if not record.overwritten or record.zfile_size - zfile.HEADER_SIZE > size:
        if error:
            raise error
        block = await tail.pread(base + max(0, size - zfile.HEADER_SIZE), min(size, 512))
        if not zfile.is_zfile(block) or size < 2 * zfile.HEADER_SIZE:
            raise FormatError(
                f"{tail.name}: a ZFile begins at byte {base}, but its trailer is missing",
                hint="the file is truncated",
            )
        record = zfile.parse_trailer(block, tail.name)
        if record.zfile_size != size:
            raise FormatError(
                f"{tail.name}: ZFile of {record.zfile_size} bytes in {size} bytes of payload"
            )
    return await _read_blocks(tail, base, record)


async def _read_blocks(
    tail: _Tail, base: int, record: zfile.ZFileRecord
) -> tuple[ZFileStream, int]:
    raw = await tail.pread(base + record.index_offset, 4 * record.block_count)
    blocks = zfile.parse_index(raw, record, tail.name)
    return ZFileStream(tail, base, blocks), base


async def _find_plain(tail: _Tail) -> tuple[PlainStream, int]:
    if lsmt.is_lsmt(tail.data[-lsmt.BLOCK :]):
        return PlainStream(tail, 0, tail.size), 0  # a bare one; its head is checked later
    base, size, head = await _payload(tail)
    if not lsmt.is_lsmt(head):
        raise await _not_a_layer(tail)
    return PlainStream(tail, base, size), base


async def _payload(tail: _Tail) -> tuple[int, int, bytes]:
    """Offset and size of what is inside the tar wrapper (if any), and its first 512 bytes."""
    head = await tail.head()
    base, size = 0, tail.size
    if is_tar(head):
        member = parse_tar(head, tail.size, tail.name)
        base, size = member.offset, member.size
    return base, size, head[base : base + min(zfile.HEADER_SIZE, size)]


async def _not_a_layer(tail: _Tail) -> HybridError:
    """Say what a blob is that is no layer: that is what its owner needs to know."""
    head = await tail.head()
    if head[:2] == b"\x1f\x8b":
        what = "it is gzip-compressed, as the layers of plain OCI images are"
    elif head[:4] == b"\x28\xb5\x2f\xfd":
        what = "it is zstd-compressed, as the layers of plain OCI images are"
    elif is_tar(head):
        what = f"it is a tar archive that begins with {parse_tar(head, tail.size, '').name!r}"
    elif not tail.size:
        what = "it is empty"
    else:
        what = "neither ZFile nor LSMT magic was found"
    return UnsupportedError(f"{tail.name} is no overlaybd layer: {what}")
