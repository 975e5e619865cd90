"""What the file must hold: now, and after a crash (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Difference(Exception):
    """Something that was read is not what was written."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass
class Model:
    """The bytes of the file, and what of them was changed since the last fsync."""

    content: bytearray = field(default_factory=bytearray)
    _changed: list[tuple[int, int]] = field(default_factory=list)
    _sizes: set[int] = field(default_factory=lambda: {0})
    """All sizes since the last fsync, the one at that time included."""

    def write(self, offset: int, data: bytes) -> None:
        """As pwrite: a gap before ``offset`` becomes zeros."""
        before = len(self.content)
        if offset > before:
            self.content.extend(bytes(offset - before))
        self.content[offset : offset + len(data)] = data
        self._note(min(offset, before), offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        """As FALLOC_FL_PUNCH_HOLE: the size stays."""
        end = min(offset + length, len(self.content))
        if end > offset:
            self.content[offset:end] = bytes(end - offset)
            self._note(offset, end)

    def truncate(self, size: int) -> None:
        """As ftruncate, in both directions."""
        before = len(self.content)
        if size < before:
            del self.content[size:]
        else:
            self.content.extend(bytes(size - before))
        self._note(min(size, before), max(size, before))

    def _note(self, start: int, end: int) -> None:
        self._changed.append((start, end))
        self._sizes.add(len(self.content))

    def synchronised(self) -> None:
        """An fsync has returned."""
        self._changed.clear()
        self._sizes = {len(self.content)}

    def check(self, offset: int, data: bytes, what: str) -> None:
        """Raise Difference unless ``data`` is what the file holds at ``offset``."""
        wanted = bytes(self.content[offset : offset + len(data)])
        if data != wanted:
            _differs(offset, data, wanted, what)

    def check_whole(self, data: bytes, what: str) -> None:
        """Raise Difference unless ``data`` is the whole file."""
        if len(data) != len(self.content):
            raise Difference(f"{what}: {len(data)} bytes, not {len(self.content)}")
        self.check(0, data, what)

    def recover(self, data: bytes) -> None:
        """Compare the file after a crash as far as it was synchronised; go on with the rest.

        Raises Difference.
        """
        if not min(self._sizes) <= len(data) <= max(self._sizes):
            sizes = sorted(self._sizes)
            raise Difference(f"after a crash: {len(data)} bytes; the file had {sizes}")
        position = 0
        for start, end in [*sorted(self._changed), (len(data), len(data))]:
            clean = data[position : min(start, len(data))]
            if clean:
                self.check(position, clean, "after a crash, synchronised before")
            position = max(position, end)
        # Of what was changed later, anything may be there.
        self.content = bytearray(data)


def _differs(offset: int, data: bytes, wanted: bytes, what: str) -> None:
    limit = min(len(data), len(wanted))
    first = next((n for n in range(limit) if data[n] != wanted[n]), limit)
    wrong = sum(a != b for a, b in zip(data, wanted, strict=False)) + abs(len(data) - len(wanted))
    raise Difference(
        f"{what}: {wrong} of {len(data)} bytes at {offset} differ, from {offset + first} on: "
        f"{data[first : first + 16].hex()} instead of {wanted[first : first + 16].hex()}"
    )
