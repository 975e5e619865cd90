"""LayerStack: the disk that several layers make, as the Base of the next one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from hybrid.build.ext4.changes import Base, Changes
from hybrid.build.ext4.runs import BLOCK, Run, whole_blocks
from hybrid.core.device import check_range

_Piece = tuple[int, int, Base | Changes]
"""Start, end, and who has the data."""


class LayerStack:
    """A Base (or nothing but zeros) with the Changes of finished layers over it.

    It reads from the Changes as long as it is used, and does not close them. Not thread-safe while
    ``push`` runs.
    """

    def __init__(self, size: int, base: Base | None = None) -> None:
        if size % BLOCK or (base is not None and base.size != size):
            raise ValueError("the size must be that of the base, and a multiple of 4096")
        self.size = size
        self._pieces: list[_Piece] = []
        if base is not None:
            for offset, length in whole_blocks(base.extents(), size):
                self._pieces.append((offset, offset + length, base))
        self._starts = [piece[0] for piece in self._pieces]

    def push(self, changes: Changes) -> None:
        """Put one more layer on top."""
        if changes.size != self.size:
            raise ValueError("a layer of another size")
        self._pieces = list(_merged(self._pieces, changes))
        self._starts = [piece[0] for piece in self._pieces]

    def read(self, offset: int, length: int) -> bytes:
        """What the layers show: zeros where none has data."""
        check_range(offset, length, self.size, "the stack of layers")
        end = offset + length
        parts: list[bytes] = []
        at = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end and at < len(self._pieces):
            start, stop, source = self._pieces[at]
            at += 1
            if start >= end:
                break
            if stop <= offset:
                continue
            if start > offset:
                parts.append(bytes(start - offset))
                offset = start
            stop = min(stop, end)
            parts.append(bytes(source.read(offset, stop - offset)))
            offset = stop
        parts.append(bytes(end - offset))
        return b"".join(parts)

    def extents(self) -> Sequence[Run]:
        """Where some layer has data."""
        return [(start, end - start) for start, end, _ in self._pieces]


def _merged(old: list[_Piece], changes: Changes) -> Iterator[_Piece]:
    """The new layer's pieces, and what is left of the old ones between them."""
    at = 0
    rest: _Piece | None = None  # what a change has left of an old piece
    for extent in changes.extents:
        end = extent.offset + extent.length
        while rest is not None or at < len(old):
            piece = old[at] if rest is None else rest
            if piece[0] >= end:
                break
            if rest is None:
                at += 1
            rest = None
            start, stop, source = piece
            if start < extent.offset:
                yield start, min(stop, extent.offset), source
            if stop > end:
                rest = (end, stop, source)
                break
        if not extent.zero:
            yield extent.offset, end, changes
    if rest is not None:
        yield rest
    yield from old[at:]
