"""An independent writer and a strict reader of the one-member tar wrapper, by tar-and-blob.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BLOCK = 512
MEMBER_NAME = "overlaybd.commit"
PAX_NAME = "overlaybd.pax"
LAYOUT = {  # name: (offset, size) in bytes of a header block
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12),
    "mtime": (136, 12), "chksum": (148, 8), "typeflag": (156, 1), "linkname": (157, 100),
    "magic": (257, 6), "version": (263, 2), "uname": (265, 32), "gname": (297, 32),
    "devmajor": (329, 8), "devminor": (337, 8), "prefix": (345, 155),
}  # fmt: skip


def header_sum(block: bytes) -> int:
    """The unsigned checksum: the field itself counts as eight spaces."""
    return sum(block[:148]) + 8 * 32 + sum(block[156:])


def tar_header(fields: Mapping[str, bytes | str], chksum: bytes | None = None) -> bytes:
    """One header block, all else NUL; the checksum is computed unless given."""
    block = bytearray(BLOCK)
    for name, value in ({"magic": "ustar\0", "version": "00"} | dict(fields)).items():
        start, size = LAYOUT[name]
        raw = value.encode() if isinstance(value, str) else value
        assert len(raw) <= size, name
        block[start : start + len(raw)] = raw
    block[148:156] = b"%6o \0" % header_sum(bytes(block)) if chksum is None else chksum
    return bytes(block)


def octal(value: int, width: int) -> bytes:
    """Right aligned with spaces, then one space: how the reference writes sizes."""
    return b"%*o " % (width - 1, value)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax_record(key: str, value: str) -> bytes:
    """``LEN key=value\\n`` where LEN counts itself."""
    rest = len(key.encode()) + len(value.encode()) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    record = f"{length} {key}={value}\n".encode()
    assert len(record) == length
    return record


def pax_header(records: Sequence[tuple[str, str]], typeflag: str = "x") -> bytes:
    """Extended header block with its body blocks."""
    body = b"".join(pax_record(key, value) for key, value in records)
    fields = {"name": PAX_NAME, "size": octal(len(body), 12), "typeflag": typeflag}
    return tar_header(fields) + pad(body)


def long_name(name: str, typeflag: str = "L") -> bytes:
    """GNU long name (or link) with a ustar magic, so that readers recognise the first block."""
    body = name.encode() + b"\0"
    fields = {"name": "././@LongLink", "size": octal(len(body), 12), "typeflag": typeflag}
    return tar_header(fields) + pad(body)


def member_header(length: int, **fields: bytes | str) -> bytes:
    """The ustar header of the payload; ``length`` is what the octal field says."""
    return tar_header(
        {
            "name": MEMBER_NAME, "mode": b"100644 \0", "uid": b"     0 \0", "gid": b"     0 \0",
            "size": octal(length, 12), "mtime": octal(0, 12), "typeflag": "0",
            "uname": "root", "gname": "root",
        } | fields
    )  # fmt: skip


STYLES = ("pax", "ustar", "gnu-long-pax", "global-pax", "big-pax", "pax-ustar-size")


def tar_prefix(size: int, style: str = "pax", **fields: bytes | str) -> bytes:
    """All header blocks before a payload of ``size`` bytes.

    pax: the reference's own. ustar: one plain header. gnu-long-pax: GNU long name, then PAX.
    global-pax: a global header first. big-pax: a PAX body of several blocks. pax-ustar-size: the
    size in both headers.
    """
    pax = pax_header([("size", str(size))])
    if style == "ustar":
        return member_header(size, **fields)
    if style == "gnu-long-pax":
        return long_name("d/" * 60 + MEMBER_NAME) + pax + member_header(0, **fields)
    if style == "global-pax":
        return pax_header([("comment", "x" * 700)], "g") + pax + member_header(0, **fields)
    if style == "big-pax":
        records = [("comment", "y" * 1500), ("size", str(size))]
        return pax_header(records) + member_header(0, **fields)
    return pax + member_header(size if style == "pax-ustar-size" else 0, **fields)


def build_tar(
    payload: bytes,
    style: str = "pax",
    *,
    extra_blocks: int = 0,
    end_blocks: int = 2,
    **fields: bytes | str,
) -> bytes:
    """The payload in a tar of one member; ``extra_blocks`` more zero blocks follow the end mark."""
    end = bytes(BLOCK * (end_blocks + extra_blocks))
    return tar_prefix(len(payload), style, **fields) + pad(payload) + end


@dataclass(frozen=True)
class ParsedTar:
    pax: bytes
    """The first header block."""
    member: bytes
    payload: bytes


def text_of(block: bytes, name: str) -> bytes:
    start, size = LAYOUT[name]
    return block[start : start + size]


def parse_tar(data: bytes) -> ParsedTar:
    """Read what a writer made, asserting section 1 byte for byte (mode: any form)."""
    assert len(data) % BLOCK == 0
    pax, body, member = data[:512], data[512:1024], data[1024:1536]
    for block in (pax, member):
        assert text_of(block, "magic") == b"ustar\0"
        assert text_of(block, "version") == b"00"
        assert text_of(block, "chksum") == b"%6o \0" % header_sum(block)
    assert text_of(pax, "name") == PAX_NAME.encode().ljust(100, b"\0")
    assert text_of(pax, "typeflag") == b"x"
    assert not any(text_of(pax, "mode") + text_of(pax, "uid") + text_of(pax, "gid"))
    assert not any(text_of(pax, "mtime"))
    length = int(text_of(pax, "size"), 8)
    assert text_of(pax, "size") == octal(length, 12)
    assert not any(body[length:])
    key, _, value = body[:length].decode().rstrip("\n").partition(" ")[2].partition("=")
    assert key == "size"
    size = int(value)
    assert body[:length] == pax_record("size", str(size))
    assert text_of(member, "name") == MEMBER_NAME.encode().ljust(100, b"\0")
    assert int(text_of(member, "mode").strip(b" \0"), 8) & 0o7777 == 0o644
    assert text_of(member, "uid") == text_of(member, "gid") == b"     0 \0"
    assert text_of(member, "size") == text_of(member, "mtime") == octal(0, 12)
    assert text_of(member, "typeflag") == b"0"
    assert text_of(member, "uname").rstrip(b"\0") == text_of(member, "gname").rstrip(b"\0")
    assert text_of(member, "uname").rstrip(b"\0") == b"root"
    assert not any(text_of(member, "linkname") + member[329:])
    assert len(data) == -(-(1536 + size) // BLOCK) * BLOCK + 1024
    assert not any(data[1536 + size :])
    return ParsedTar(pax, member, data[1536 : 1536 + size])
