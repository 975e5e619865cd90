"""SCSI by other means: sense data taken apart by hand, and sg3-utils as a judge of raw bytes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from hybrid.block.scsi import CheckCondition, LogicalUnit, Request, decode

GIB = 1 << 30
WWN = "3123456789abcdef"
SERIAL = "0123abcd"


def logical_unit(
    *, size: int = 10 * GIB, block_size: int = 512, writable: bool = True, write_cache: bool = True
) -> LogicalUnit:
    """A unit with well known names: writable with a write cache, unless told otherwise."""
    return LogicalUnit(
        size=size,
        wwn=WWN,
        serial=SERIAL,
        block_size=block_size,
        writable=writable,
        write_cache=write_cache and writable,
    )


class Sense(NamedTuple):
    """Fixed format sense data in plain numbers. ``code`` is ASC and ASCQ as 16 bits."""

    key: int
    code: int
    information: int | None = None
    field: str = ""
    """``cdb 7.3``: bit 3 of byte 7; ``list 258``: a whole byte of the parameter list."""


def parse_sense(data: bytes) -> Sense:
    assert len(data) == 18
    assert data[0] in (0x70, 0xF0)
    assert data[7] == 10
    information = int.from_bytes(data[3:7], "big") if data[0] == 0xF0 else None
    field = ""
    if data[15] & 0x80:
        field = f"{'cdb' if data[15] & 0x40 else 'list'} {data[16] << 8 | data[17]}"
        field += f".{data[15] & 7}" if data[15] & 8 else ""
    return Sense(data[2], data[12] << 8 | data[13], information, field)


def hex_cdb(text: str) -> bytes:
    return bytes.fromhex(text)


def reply(unit: LogicalUnit, cdb: str) -> bytes:
    """The data-in that a CDB in hex is answered with."""
    return decode(unit, hex_cdb(cdb)).data


def outcome(unit: LogicalUnit, cdb: bytes) -> Request | Sense:
    """What becomes of a CDB, whatever it is."""
    try:
        return decode(unit, cdb)
    except CheckCondition as error:
        return parse_sense(error.sense)


def refusal(unit: LogicalUnit, cdb: str | bytes) -> Sense:
    """The sense data that a CDB is answered with."""
    with pytest.raises(CheckCondition) as caught:
        decode(unit, cdb if isinstance(cdb, bytes) else hex_cdb(cdb))
    return parse_sense(caught.value.sense)


def judge(program: str, data: bytes, directory: Path, *options: str) -> str:
    """What a program of sg3-utils reads in raw bytes, with blanks squeezed."""
    file = directory / "raw"
    file.write_bytes(data)
    binary = f"--binary={file}" if program == "sg_decode_sense" else f"--inhex={file}"
    raw = () if program == "sg_decode_sense" else ("--raw",)
    done = subprocess.run(
        [program, *raw, binary, *options], capture_output=True, text=True, check=True, timeout=20
    )
    return re.sub(r"[ \t]+", " ", done.stdout)
