"""Where the frames of a zstd stream end (RFC 8878, section 3.1). Pure.

The library's bounded reader does not say whether a stream stopped in the middle of a frame. This
follows headers and block sizes only, so it costs next to nothing.
"""

from __future__ import annotations

from hybrid.errors import FormatError

MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_CONTENT_SIZES = (0, 2, 4, 8)
_DICTIONARY_SIZES = (0, 1, 2, 4)


class FrameWalker:
    """Feed it all compressed bytes, in any pieces. ``at_boundary``: no frame is unfinished."""

    def __init__(self) -> None:
        self.at_boundary = True
        self._skip = 0  # bytes that need no look
        self._head = b""  # what is known of the next thing to look at
        self._in_frame = False
        self._checksum = False
        self._last = False

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            else:
                self._head += data[at : at + 1]
                at += 1
                self._look()
            self.at_boundary = not (self._skip or self._head or self._in_frame)

    def _look(self) -> None:
        head = self._head
        if self._in_frame:
            if len(head) == 3:
                self._block(int.from_bytes(head, "little"))
        elif len(head) == 4 and head != MAGIC:
            if int.from_bytes(head, "little") not in _SKIPPABLE:
                raise FormatError("neither a zstd frame nor the end of the stream")
        elif len(head) == 5 and head[:4] == MAGIC:
            self._frame(head[4])
        elif len(head) == 8:
            self._skip = int.from_bytes(head[4:], "little")
            self._head = b""

    def _frame(self, descriptor: int) -> None:
        single = descriptor >> 5 & 1
        size = _CONTENT_SIZES[descriptor >> 6] or single
        self._skip = (1 - single) + _DICTIONARY_SIZES[descriptor & 3] + size
        self._checksum = bool(descriptor & 4)
        self._in_frame = True
        self._head = b""

    def _block(self, header: int) -> None:
        kind, size = header >> 1 & 3, header >> 3
        self._skip = 1 if kind == 1 else size
        self._head = b""
        if header & 1:
            self._in_frame = False
            self._skip += 4 if self._checksum else 0
