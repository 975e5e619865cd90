"""Maps of sparse files: where in a file the pieces of stored data belong. Pure.

A map is a list of (offset, length) in bytes. Four formats: GNU's own header (type ``S``), and 0.0,
0.1 and 1.0 in PAX records (GNU tar manual, "Sparse Formats"). In 1.0 the map precedes the data.
"""

from __future__ import annotations

from hybrid.build.tar.header import BLOCK
from hybrid.build.tar.numbers import decimal, header_number
from hybrid.build.tar.pax import Records
from hybrid.errors import FormatError

Map = list[tuple[int, int]]

_OLD_IN_HEADER, _OLD_IN_EXTENSION = 4, 21
_OLD_ENTRY = 24


def old_map(header: bytes) -> tuple[Map, bool, int]:
    """The map in a header of type ``S``, whether extension blocks follow, and the file's size."""
    size = header_number(header[483:495], "size of a sparse file")
    return _old_entries(header[386:482], _OLD_IN_HEADER), header[482] != 0, size


def old_extension(block: bytes) -> tuple[Map, bool]:
    """The map in one extension block, and whether another follows."""
    return _old_entries(block, _OLD_IN_EXTENSION), block[504] != 0


def _old_entries(fields: bytes, count: int) -> Map:
    found: Map = []
    for at in range(0, count * _OLD_ENTRY, _OLD_ENTRY):
        if fields[at] == 0 and fields[at + 12] == 0:
            break
        found.append(
            (
                header_number(fields[at : at + 12], "offset in a sparse map"),
                header_number(fields[at + 12 : at + 24], "length in a sparse map"),
            )
        )
    return found


def pax_map(records: Records) -> Map | None:
    """The map in PAX records of format 0.0 or 0.1; None: they are of neither."""
    values: list[bytes] = []
    for key, value in records:
        if key == b"GNU.sparse.map":
            values = value.split(b",") if value else []
            return _pairs(values)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            expected = b"GNU.sparse.numbytes" if len(values) % 2 else b"GNU.sparse.offset"
            if key != expected:
                raise FormatError("damaged sparse map (order of its records)")
            values.append(value)
    known = {key for key, _ in records}
    return _pairs(values) if values or b"GNU.sparse.numblocks" in known else None


def _pairs(values: list[bytes]) -> Map:
    if len(values) % 2:
        raise FormatError("damaged sparse map (odd number of values)")
    numbers = [decimal(value, "number in a sparse map") for value in values]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class MapInData:
    """Format 1.0: decimal lines at the start of the data, filled up to a whole block.

    Feed it block by block until ``done``; ``map`` is then complete.
    """

    def __init__(self) -> None:
        self.map: Map = []
        self.done = False
        self._numbers: list[int] = []
        self._rest = b""

    def feed(self, block: bytes) -> None:
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            self._numbers.append(decimal(line, "number in a sparse map"))
            if len(self._numbers) == 1 + 2 * self._numbers[0]:
                self.done = True
                self.map = list(zip(self._numbers[1::2], self._numbers[2::2], strict=True))
                return
        if len(self._rest) > BLOCK:
            raise FormatError("damaged sparse map (no end of a number)")


def check_map(pieces: Map, size: int, stored: int) -> Map:
    """The map without empty pieces, if it fits to a file of ``size`` and its ``stored`` data."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError("damaged sparse map (its pieces overlap or leave the file)")
        end = offset + length
        total += length
    if total != stored:
        raise FormatError(f"damaged sparse map ({stored} bytes of data, {total} in the map)")
    return [piece for piece in pieces if piece[1]]
