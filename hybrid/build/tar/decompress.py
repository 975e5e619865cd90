"""Layers as they are stored: plain, gzip or zstd, recognised by their first bytes.

Memory is bounded whatever the stream expands to: each step gives at most what was asked for. gzip
goes through the standard library's zlib (400 MB/s of output on one core; isal has 740, which does
not pay for a dependency while other parts of a conversion take more); zstd through ``zstandard``.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import IO, cast

import zstandard

from hybrid.build.tar.window import Read
from hybrid.build.tar.zstd_frames import MAGIC as ZSTD_MAGIC
from hybrid.build.tar.zstd_frames import FrameWalker
from hybrid.errors import FormatError, UnsupportedError

_INPUT = 1 << 17
"""Bytes of compressed data read at once."""
_GZIP_INPUT = 1 << 15
"""Less for gzip: what follows a member is copied, and seekable layers have very many members."""
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_WINDOW = 1 << 27
"""Bytes that zstd may look back, and hybrid has to keep: 128 MiB, as ``zstd -d`` has it."""
_FOREIGN = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
_SNIFF = 6


class Expander(ABC):
    """A stream of uncompressed bytes."""

    kind: str
    """``none``, ``gzip`` or ``zstd``."""

    @abstractmethod
    def read(self, size: int) -> bytes:
        """1 to ``size`` bytes, or nothing at the end. Raises FormatError for damaged streams."""


def open_expander(read: Read, name: str) -> Expander:
    """Recognise the compression of the stream that ``read(n)`` gives; ``name`` is for messages.

    Raises UnsupportedError for compressions that layers do not have.
    """
    source = _Source(read, name)
    head = source.peek(_SNIFF)
    if head.startswith(_GZIP_MAGIC):
        return _Gzip(source)
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[:1] >= b"\x50" and head[:1] < b"\x60"
    if head.startswith(ZSTD_MAGIC) or skippable:
        return _Zstd(source)
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise UnsupportedError(
                f"{name} is compressed with {kind}", hint="layers are plain, gzip or zstd"
            )
    return _Plain(source)


class _Source:
    """The stored bytes, with a look ahead and a count."""

    def __init__(self, read: Read, name: str) -> None:
        self.name = name
        self.used = 0
        self._read = read
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (part := self._read(_INPUT)):
            self._ahead += part
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        if self._ahead:
            part, self._ahead = self._ahead[:size], self._ahead[size:]
        else:
            part = bytes(self._read(size))
        self.used += len(part)
        return part

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self.name}: {what} near byte {self.used}", offset=self.used)


class _Plain(Expander):
    kind = "none"

    def __init__(self, source: _Source) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        return self._source.read(size)


class _Gzip(Expander):
    """One member or several, then nothing or zeros."""

    kind = "gzip"

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._input = b""
        self._member: zlib._Decompress | None = zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        while self._member is not None:
            if not self._input:
                self._input = self._source.read(_GZIP_INPUT)
                if not self._input:
                    raise self._source.damaged("truncated gzip stream")
            try:
                output = self._member.decompress(self._input, size)
            except zlib.error as error:
                raise self._source.damaged(f"damaged gzip stream ({error})") from None
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                self._next_member(self._member.unused_data)
            if output:
                return output
        return b""

    def _next_member(self, rest: bytes) -> None:
        self._member = None
        while True:
            rest = rest.lstrip(b"\0") or self._source.read(_GZIP_INPUT)
            if not rest:
                return
            if rest[0]:
                break
        rest += self._source.peek(1) and self._source.read(1) if len(rest) == 1 else b""
        if not rest.startswith(_GZIP_MAGIC):
            raise self._source.damaged("something else behind a gzip stream")
        self._input = rest
        self._member = zlib.decompressobj(31)


class _Zstd(Expander):
    """One frame or several, with skippable ones between them."""

    kind = "zstd"

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._walker = FrameWalker()
        expander = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._reader = expander.stream_reader(
            cast(IO[bytes], _Followed(source, self._walker)),  # it calls nothing but read
            read_size=_INPUT,
            read_across_frames=True,
        )

    def read(self, size: int) -> bytes:
        try:
            output = self._reader.read(size)
        except zstandard.ZstdError as error:
            raise self._source.damaged(f"damaged zstd stream ({error})") from None
        if not output and not self._walker.at_boundary:
            raise self._source.damaged("truncated zstd stream")
        return output


class _Followed:
    """The file that zstandard reads from: each byte passes the walker as well."""

    def __init__(self, source: _Source, walker: FrameWalker) -> None:
        self._source = source
        self._walker = walker

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        try:
            self._walker.feed(data)
        except FormatError as error:
            raise self._source.damaged(f"damaged zstd stream ({error.message})") from None
        return data
