"""An independent LSMT writer and a strict reader, by lsmt.md alone.

A layer is described by *writes* in the order they were made: ``Write(lba, payload)``. The payload
is bytes (a multiple of 512), or a number of sectors that read as zeros (a discard), or, for
TurboOCI, ``Remote``. LBAs, lengths and moffsets are sectors of 512 bytes; other numbers are bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

SECTOR = 512
HT_SIZE = 4096
"""Bytes of a header or trailer block."""
DATA_START = HT_SIZE // SECTOR
MAGIC0 = b"LSMT\0\x01\x02\0"
MAGIC1 = bytes.fromhex("657E63D29444084CA2D2C8EC4FCFAE8A")
NIL_UUID = "00000000-0000-0000-0000-000000000000"
INVALID_OFFSET = 2**50 - 1
INVALID_ENTRY = bytes.fromhex("FFFFFFFFFFFF0300") + bytes(8)
MAX_LENGTH = 16383
"""Sectors of the longest entry."""

FIELDS = (  # name, struct code; in order, the packed record of section 2
    ("magic0", "8s"), ("magic1", "16s"), ("size", "I"), ("flags", "I"), ("index_offset", "Q"),
    ("index_size", "Q"), ("virtual_size", "Q"), ("uuid", "37s"), ("parent_uuid", "37s"),
    ("reserved", "H"), ("version", "B"), ("sub_version", "B"), ("user_tag", "256s"),
    ("padding", "3706s"),
)  # fmt: skip
RECORD = struct.Struct("<" + "".join(code for _, code in FIELDS))
DEFAULTS: dict[str, Any] = {name: 0 for name, _ in FIELDS} | {
    "magic0": MAGIC0, "magic1": MAGIC1, "size": 390, "uuid": NIL_UUID, "parent_uuid": NIL_UUID,
    "version": 1, "sub_version": 1, "user_tag": b"", "padding": b"",
}  # fmt: skip


def pack_ht(fields: Mapping[str, Any]) -> bytes:
    """One 4096-byte block; text fields may be given as str."""
    values = DEFAULTS | dict(fields)
    row = (values[name] for name, _ in FIELDS)
    return RECORD.pack(*(item.encode() if isinstance(item, str) else item for item in row))


def unpack_ht(block: bytes) -> dict[str, Any]:
    """The fields of a 4096-byte block by name."""
    return dict(zip((name for name, _ in FIELDS), RECORD.unpack(block), strict=True))


class Entry(NamedTuple):
    """One index entry; all in sectors."""

    offset: int
    length: int
    moffset: int
    zeroed: bool = False
    tag: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pack(self) -> bytes:
        word0 = self.offset | self.length << 50
        word1 = self.moffset | int(self.zeroed) << 55 | self.tag << 56
        return struct.pack("<QQ", word0, word1)

    @classmethod
    def unpack(cls, raw: bytes) -> Entry:
        word0, word1 = struct.unpack("<QQ", raw)
        return cls(
            word0 & (2**50 - 1), word0 >> 50,
            word1 & (2**55 - 1), bool(word1 >> 55 & 1), word1 >> 56,
        )  # fmt: skip


def pack_entries(entries: Iterable[Entry]) -> bytes:
    return b"".join(entry.pack() for entry in entries)


def unpack_entries(raw: bytes) -> list[Entry]:
    """Every entry, INVALID padding included."""
    return [Entry.unpack(raw[at : at + 16]) for at in range(0, len(raw), 16)]


class Remote(NamedTuple):
    """TurboOCI payload: ``length`` sectors at sector ``moffset`` of the target file."""

    length: int
    moffset: int


class Write(NamedTuple):
    lba: int
    payload: bytes | int | Remote

    @property
    def length(self) -> int:
        """Sectors."""
        if isinstance(self.payload, int):
            return self.payload
        if isinstance(self.payload, Remote):
            return self.payload.length
        return len(self.payload) // SECTOR


Sector = tuple[str, Any]
"""What one sector of a layer is: ("data", 512 bytes), ("zero", None) or ("remote", moffset)."""


def paint(writes: Iterable[Write]) -> dict[int, Sector]:
    """The layer sector by sector: the plainest model there is. Later writes win."""
    sectors: dict[int, Sector] = {}
    for lba, payload in writes:
        if isinstance(payload, int):
            sectors.update((lba + i, ("zero", None)) for i in range(payload))
        elif isinstance(payload, Remote):
            sectors.update((lba + i, ("remote", payload.moffset + i)) for i in range(payload[0]))
        else:
            assert len(payload) % SECTOR == 0
            for i in range(len(payload) // SECTOR):
                sectors[lba + i] = ("data", payload[i * SECTOR : (i + 1) * SECTOR])
    return sectors


def compact(writes: Iterable[Write], max_length: int) -> tuple[list[Entry], bytes]:
    """(sorted entries, data section) as commit lays them out: ascending LBA, no garbage.

    Data entries have tag 0, remote entries tag 1; zeroed entries name the place where data would
    have gone (spec: lsmt 12).
    """
    entries: list[Entry] = []
    data = bytearray()
    for lba, (kind, value) in sorted(paint(writes).items()):
        position = DATA_START + len(data) // SECTOR
        if kind == "data":
            new = Entry(lba, 1, position)
            data += value
        else:
            new = Entry(lba, 1, position if kind == "zero" else value, kind == "zero",
                        int(kind == "remote"))  # fmt: skip
        last = entries[-1] if entries else None
        if (
            last is not None
            and last.end == lba
            and (last.zeroed, last.tag) == (new.zeroed, new.tag)
            and last.moffset + (0 if last.zeroed else last.length) == new.moffset
            and last.length < max_length
        ):
            entries[-1] = last._replace(length=last.length + 1)
        else:
            entries.append(new)
    return entries, bytes(data)


def log_layout(writes: Iterable[Write], sparse: bool) -> tuple[list[Entry], bytes]:
    """(sorted entries, data section) of a layer sealed in place: order of writing, garbage kept."""
    data = bytearray()
    where: dict[int, tuple[int, bool]] = {}
    for write in writes:
        position = len(data) // SECTOR
        if isinstance(write.payload, bytes):
            if sparse:
                end = (write.lba + write.length) * SECTOR
                data += bytes(max(0, end - len(data)))
                data[write.lba * SECTOR : end] = write.payload
                position = write.lba
            else:
                data += write.payload
        zeroed = isinstance(write.payload, int)
        for i in range(write.length):
            where[write.lba + i] = (DATA_START + position + (0 if zeroed else i), zeroed)
    entries: list[Entry] = []
    for lba, (moffset, zeroed) in sorted(where.items()):
        last = entries[-1] if entries else None
        if (
            last is not None
            and last.end == lba
            and last.zeroed == zeroed
            and last.moffset + (0 if zeroed else last.length) == moffset
            and last.length < MAX_LENGTH
        ):
            entries[-1] = last._replace(length=last.length + 1)
        else:
            entries.append(Entry(lba, 1, moffset, zeroed))
    return entries, bytes(data)


HEADER_FLAGS = {"commit": 0x07, "seal": 0x03, "sparse-seal": 0x13, "turbo": 0x07}
TRAILER_FLAGS = {"commit": 0x06, "seal": 0x06, "sparse-seal": 0x16, "turbo": 0x06}


def index_padding(style: str, count: int, seed: int) -> bytes:
    """What stands between the last entry and the trailer (spec: lsmt 4)."""
    if style == "commit":
        return INVALID_ENTRY * (-count % 256)
    if style == "turbo":
        return b""
    return Random(seed).randbytes(-(count * 16) % SECTOR)  # uninitialised memory


def build_sealed(
    entries: Sequence[Entry],
    data: bytes,
    *,
    vsize: int,
    style: str = "commit",
    uuid: str = NIL_UUID,
    parent_uuid: str = NIL_UUID,
    user_tag: bytes = b"",
    garbage_seed: int = 1,
    padding: bytes | None = None,
    gap: bytes = b"",
    header: Mapping[str, Any] | None = None,
    trailer: Mapping[str, Any] | None = None,
) -> bytes:
    """A sealed file from entries as they stand and the bytes of the data section.

    ``padding`` replaces what follows the entries; ``gap`` lies between data and index. ``header``
    and ``trailer`` override fields. Nothing is checked: any damage can be asked for.
    """
    pad = index_padding(style, len(entries), garbage_seed) if padding is None else padding
    common = {"virtual_size": vsize, "uuid": uuid, "parent_uuid": parent_uuid}
    count = len(entries) + (len(pad) // 16 if style == "commit" else 0)
    head = common | {"flags": HEADER_FLAGS[style], "user_tag": user_tag}
    tail = common | {
        "flags": TRAILER_FLAGS[style],
        "index_offset": HT_SIZE + len(data) + len(gap),
        "index_size": count,
        "user_tag": user_tag if style == "commit" else b"",
    }
    return b"".join(
        (
            pack_ht(head | dict(header or {})),
            data,
            gap,
            pack_entries(entries),
            pad,
            pack_ht(tail | dict(trailer or {})),
        )
    )


def build_lsmt(
    writes: Iterable[Write],
    vsize: int,
    *,
    style: str = "commit",
    max_length: int = 16320,
    tags: Sequence[int] | None = None,
    **options: Any,
) -> bytes:
    """A sealed layer of these writes in one of the styles commit, seal, sparse-seal, turbo.

    ``max_length`` cuts entries (sectors; commit and turbo). ``tags`` gives entry i the tag
    ``tags[i % len(tags)]`` on disk. Other options: see build_sealed.
    """
    writes = list(writes)
    if style in ("commit", "turbo"):
        entries, data = compact(writes, max_length)
    else:
        entries, data = log_layout(writes, style == "sparse-seal")
    if tags:
        entries = [e._replace(tag=tags[i % len(tags)]) for i, e in enumerate(entries)]
    return build_sealed(entries, data, vsize=vsize, style=style, **options)


def build_append_rw(
    writes: Iterable[Write],
    vsize: int,
    *,
    uuid: str = "11111111-2222-4333-8444-555555555555",
    parent_uuid: str = NIL_UUID,
    tag: int = 0,
    group: int = 1,
    torn: bytes = b"",
    data_header: Mapping[str, Any] | None = None,
    index_header: Mapping[str, Any] | None = None,
) -> tuple[bytes, bytes]:
    """(data file, index file) of an append-only writable layer with these writes.

    ``tag`` is the number of lower files; ``group`` pads the log with INVALID entries to whole
    groups; ``torn`` is appended to the log as a crash would leave it (spec: lsmt 8).
    """
    common = {"virtual_size": vsize, "uuid": uuid, "parent_uuid": parent_uuid}
    data = bytearray(pack_ht(common | {"flags": 0x03} | dict(data_header or {})))
    log: list[bytes] = []
    for write in writes:
        place = len(data) // SECTOR
        zeroed = isinstance(write.payload, int)
        for start in range(0, write.length, 8192 if not zeroed else MAX_LENGTH):
            piece = min(write.length - start, 8192 if not zeroed else MAX_LENGTH)
            moffset = place if zeroed else place + start
            log.append(Entry(write.lba + start, piece, moffset, zeroed, tag).pack())
        if isinstance(write.payload, bytes):
            data += write.payload
    log += [INVALID_ENTRY] * (-len(log) % group)
    head = common | {"flags": 0x01, "index_offset": HT_SIZE} | dict(index_header or {})
    return bytes(data), pack_ht(head) + b"".join(log) + torn


@dataclass(frozen=True)
class ModelLayer:
    """One layer of the reference model: its writes in order, and its virtual size in bytes."""

    writes: tuple[Write, ...]
    vsize: int

    def build(self, **options: Any) -> bytes:
        return build_lsmt(self.writes, self.vsize, **options)

    def resized(self, vsize: int) -> ModelLayer:
        return replace(self, vsize=vsize)


def model_size(layers: Sequence[ModelLayer]) -> int:
    """Bytes: the virtual size of the topmost layer that has one (layers bottom first)."""
    return next((layer.vsize for layer in reversed(layers) if layer.vsize), 0)


def model_merge(layers: Sequence[ModelLayer]) -> bytes:
    """The disk that a stack makes, painted layer over layer, bottom first."""
    disk = bytearray(model_size(layers))
    for layer in layers:
        for lba, payload in layer.writes:
            assert not isinstance(payload, Remote), "the model knows no targets"
            content = bytes(payload * SECTOR) if isinstance(payload, int) else payload
            start = lba * SECTOR
            content = content[: max(0, len(disk) - start)]
            disk[start : start + len(content)] = content
    return bytes(disk)


@dataclass(frozen=True)
class ParsedLsmt:
    header: dict[str, Any]
    trailer: dict[str, Any]
    entries: list[Entry]
    """Without INVALID ones."""
    disk: bytes
    """The layer alone, as a disk of virtual_size bytes."""


def check_ht(block: bytes, flags: int) -> dict[str, Any]:
    """Assert what section 2 says of a block that a writer makes."""
    fields = unpack_ht(block)
    assert fields["magic0"] == MAGIC0
    assert fields["magic1"] == MAGIC1
    assert fields["size"] == 390
    assert fields["flags"] == flags, f"flags {fields['flags']:#x}, not {flags:#x}"
    assert (fields["version"], fields["sub_version"], fields["reserved"]) == (1, 1, 0)
    assert not any(fields["padding"])
    for name in ("uuid", "parent_uuid"):
        text = fields[name]
        assert text[36] == 0
        assert text[:36] == text[:36].upper()
        assert [at for at in range(36) if text[at] == ord("-")] == [8, 13, 18, 23]
        int(text[:36].replace(b"-", b""), 16)
    return fields


def check_order(entries: Sequence[Entry], index_offset: int) -> None:
    """Sorted, disjoint, none empty, moffset in bounds (spec: lsmt 5)."""
    for one, two in pairwise(entries):
        assert one.end <= two.offset
    high = index_offset // SECTOR
    for entry in entries:
        assert entry.length > 0
        assert DATA_START <= entry.moffset <= high
        assert entry.zeroed or entry.moffset + entry.length <= high


def parse_lsmt(data: bytes, *, flags: tuple[int, int] = (0x07, 0x06)) -> ParsedLsmt:
    """Read a committed layer, asserting every rule of sections 2-4 and 12 for writers."""
    assert len(data) >= 2 * HT_SIZE
    header = check_ht(data[:HT_SIZE], flags[0])
    trailer = check_ht(data[-HT_SIZE:], flags[1])
    assert header["index_offset"] == header["index_size"] == 0
    for name in ("virtual_size", "uuid", "parent_uuid", "user_tag"):
        assert header[name] == trailer[name], name
    start, count = trailer["index_offset"], trailer["index_size"]
    assert start % SECTOR == 0
    assert count % 256 == 0, "padded to 4096 bytes"
    assert start + 16 * count == len(data) - HT_SIZE, "the index ends where the trailer begins"
    every = unpack_entries(data[start : start + 16 * count])
    entries = [entry for entry in every if entry.offset != INVALID_OFFSET]
    assert every[: len(entries)] == entries, "padding is at the end only"
    assert len(every) - len(entries) < 256
    for entry in every[len(entries) :]:
        assert entry.pack() == INVALID_ENTRY
    check_order(entries, start)
    disk = bytearray(trailer["virtual_size"])
    for entry in entries:
        if not entry.zeroed:
            payload = data[entry.moffset * SECTOR : (entry.moffset + entry.length) * SECTOR]
            disk[entry.offset * SECTOR : entry.end * SECTOR] = payload
    return ParsedLsmt(header, trailer, entries, bytes(disk))
