"""A stream of bytes, looked at piece by piece without copying more than needed."""

from __future__ import annotations

from collections.abc import Callable

from hybrid.core.device import Buffer
from hybrid.errors import FormatError

CHUNK = 1 << 20
"""Bytes asked for at once."""

Read = Callable[[int], Buffer]
"""``read(n)`` gives 1 to n bytes, or nothing at the end."""


class Window:
    """The part of a stream that was read and not yet used. ``offset`` counts what was used."""

    def __init__(self, read: Read, name: str) -> None:
        self.name = name
        self._read = read
        self._view = memoryview(b"")
        self._at = 0
        self._start = 0  # the place of the view in the stream
        self._ended = False

    @property
    def offset(self) -> int:
        return self._start + self._at

    def take(self, length: int) -> memoryview:
        """The next bytes: fewer than ``length`` only at the end. Meant for small lengths."""
        at = self._at
        if len(self._view) - at < length:
            self._fill(length)
            at = self._at
        part = self._view[at : at + length]
        self._at = at + len(part)
        return part

    def exactly(self, length: int, what: str) -> memoryview:
        """As ``take``, but the end is a FormatError."""
        part = self.take(length)
        if len(part) < length:
            raise self.truncated(what)
        return part

    def piece(self, length: int, what: str) -> memoryview:
        """1 to ``length`` of the next bytes, as they come."""
        if self._at == len(self._view):
            self._fill(1)
        part = self._view[self._at : self._at + length]
        if not part:
            raise self.truncated(what)
        self._at += len(part)
        return part

    def ahead(self) -> memoryview:
        """What was read and not yet used; it stays unused."""
        return self._view[self._at :]

    def truncated(self, what: str) -> FormatError:
        return FormatError(
            f"{self.name}: truncated at byte {self.offset}, in {what}", offset=self.offset
        )

    def _fill(self, length: int) -> None:
        rest = self._view[self._at :]
        parts: list[Buffer] = [rest] if rest else []
        have = len(rest)
        while have < length and not self._ended:
            part = self._read(CHUNK)
            self._ended = not part
            have += len(part)
            parts.append(part)
        self._start += self._at
        self._at = 0
        self._view = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
