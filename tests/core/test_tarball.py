"""The tar wrapper: against an independent writer and reader, Python's tarfile, and damage."""

from __future__ import annotations

import io
import tarfile
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden
from support.build_tar import (
    LAYOUT,
    STYLES,
    header_sum,
    long_name,
    member_header,
    octal,
    pad,
    pax_header,
    pax_record,
    tar_header,
    tar_prefix,
)
from support.builders import build_tar, parse_tar

from hybrid.core import tarball
from hybrid.errors import FormatError, HybridError

NAME = "blob"
PAYLOAD = Random(1).randbytes(9733)


def head_of(data: bytes) -> bytes:
    return data[: tarball.HEAD_SIZE]


def payload_of(data: bytes) -> bytes:
    member = tarball.parse_tar(head_of(data), len(data), NAME)
    return data[member.offset : member.offset + member.size]


def wrapped(payload: bytes) -> bytes:
    size = len(payload)
    return tarball.wrap_head(size) + payload + tarball.wrap_tail(size)


# --- reading


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("extra", [0, 2])
def test_reads_every_style(style: str, extra: int) -> None:
    data = build_tar(PAYLOAD, style, extra_blocks=extra)
    assert tarball.is_tar(data[:512])
    assert payload_of(data) == PAYLOAD


@pytest.mark.parametrize("style", STYLES)
def test_python_reads_what_the_builder_writes(style: str) -> None:
    # So that the builder itself is right.
    with tarfile.open(fileobj=io.BytesIO(build_tar(PAYLOAD, style))) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == PAYLOAD


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9733])
def test_payload_sizes(size: int) -> None:
    data = build_tar(PAYLOAD[:size])
    member = tarball.parse_tar(data, len(data), NAME)
    assert (member.offset, member.size) == (1536, size)
    assert member.name == "overlaybd.commit"


def test_name_from_a_gnu_long_name() -> None:
    data = build_tar(PAYLOAD, "gnu-long-pax")
    member = tarball.parse_tar(data, len(data), NAME)
    assert member.name == "d/" * 60 + "overlaybd.commit"
    assert member.offset == 512 + 512 + 1024 + 512


def test_tar_of_gnu_tar_style() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("overlaybd.commit")
        info.size = len(PAYLOAD)
        tar.addfile(info, io.BytesIO(PAYLOAD))
    assert payload_of(buffer.getvalue()) == PAYLOAD


def test_tar_of_pythons_pax_writer() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("overlaybd.commit")
        info.size = len(PAYLOAD)
        info.pax_headers = {"comment": "ü" * 600, "creator": "x"}
        tar.addfile(info, io.BytesIO(PAYLOAD))
    assert payload_of(buffer.getvalue()) == PAYLOAD


def test_several_records_in_one_pax_header() -> None:
    size = len(PAYLOAD)
    pax = pax_header([("mtime", "1.5"), ("size", str(size)), ("creator", "a b=c\nd")])
    assert payload_of(pax + member_header(0) + pad(PAYLOAD) + bytes(1024)) == PAYLOAD


def test_pax_size_goes_before_the_octal_one() -> None:
    pax = pax_header([("size", str(len(PAYLOAD)))])
    assert payload_of(pax + member_header(512) + pad(PAYLOAD) + bytes(1024)) == PAYLOAD


def test_last_pax_size_counts() -> None:
    pax = pax_header([("size", "7"), ("size", str(len(PAYLOAD)))])
    assert payload_of(pax + member_header(0) + pad(PAYLOAD) + bytes(1024)) == PAYLOAD


def test_base_256_size() -> None:
    size = len(PAYLOAD)
    field = b"\x80" + size.to_bytes(11, "big")
    assert payload_of(member_header(0, size=field) + pad(PAYLOAD) + bytes(1024)) == PAYLOAD


def test_size_beyond_8_gib_from_pax_only() -> None:
    size = 9 << 30
    head = tar_prefix(size)
    member = tarball.parse_tar(head, size + 1536 + 1024, NAME)
    assert (member.offset, member.size) == (1536, size)


@pytest.mark.parametrize("signed", [True, False])
def test_checksum_of_signed_and_unsigned_characters(signed: bool) -> None:
    fields = {"name": "ä.commit".encode(), "size": octal(len(PAYLOAD), 12), "typeflag": "0"}
    total = header_sum(tar_header(fields))
    if signed:
        total -= 256 * 2  # the two bytes of the letter are negative as signed characters
    block = tar_header(fields, chksum=b"%6o\0 " % total)
    assert tarball.is_tar(block)
    assert payload_of(block + pad(PAYLOAD) + bytes(1024)) == PAYLOAD


@pytest.mark.parametrize("form", [b"%6o \0", b"%06o\0 ", b"%7o\0", b"%07o "])
def test_spellings_of_the_checksum(form: bytes) -> None:
    block = member_header(len(PAYLOAD))
    changed = block[:148] + form % header_sum(block) + block[156:]
    assert len(changed) == 512
    assert tarball.is_tar(changed)


# --- what is no tar


def test_what_is_no_tar() -> None:
    good = build_tar(PAYLOAD)[:512]
    assert tarball.is_tar(good)
    assert not tarball.is_tar(b"")
    assert not tarball.is_tar(good[:511])
    assert not tarball.is_tar(bytes(512))
    assert not tarball.is_tar(good[:257] + b"xxtar\0xx" + good[265:])
    for at in (0, 100, 124, 156, 300):
        assert not tarball.is_tar(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]), at


def test_unfinished_wrapper_is_no_tar() -> None:
    # What a crash before close leaves (spec: tar-and-blob 2): no magic in the first block.
    record = pax_record("size", "0")
    fields = {"name": "overlaybd.pax", "size": octal(len(record), 12), "typeflag": "x",
              "magic": "", "version": ""}  # fmt: skip
    assert not tarball.is_tar(tar_header(fields, chksum=bytes(8)))


# --- rules for damaged headers


def rejected(data: bytes, total: int | None = None) -> None:
    with pytest.raises(FormatError, match=NAME):
        tarball.parse_tar(head_of(data), len(data) if total is None else total, NAME)


@pytest.mark.parametrize("style", STYLES)
def test_member_that_does_not_fit(style: str) -> None:
    data = build_tar(PAYLOAD, style)
    end = len(tar_prefix(len(PAYLOAD), style)) + len(PAYLOAD)
    assert payload_of(data[:end]) == PAYLOAD
    rejected(data, end - 1)


@pytest.mark.parametrize("style", STYLES)
def test_headers_cut_off(style: str) -> None:
    prefix = tar_prefix(len(PAYLOAD), style)
    for size in range(0, len(prefix), 256):
        rejected(prefix[:size], 1 << 30)


@pytest.mark.parametrize("number", [0, 2])
def test_checksum_of_every_header(number: int) -> None:
    # The reference ignores the checksum of the second header (spec: tar-and-blob 8).
    data = bytearray(build_tar(PAYLOAD))
    data[512 * number + 3] ^= 1
    rejected(bytes(data))


@pytest.mark.parametrize(
    "field",
    [b"-0000000010 ", b"0o000000012 ", b"       1_0 ", b"+0000000010 ", b"99999999999 ",
     b"abc        ", b"7 7         "],
)  # fmt: skip
def test_member_size_that_is_no_octal_number(field: bytes) -> None:
    rejected(member_header(0, size=field) + pad(PAYLOAD) + bytes(1024))


def test_negative_base_256_size() -> None:
    field = (-512).to_bytes(12, "big", signed=True)
    rejected(member_header(0, size=field) + pad(PAYLOAD) + bytes(1024))


@pytest.mark.parametrize("size", ["-1", "", " 12", "1e3", "0x10", "12 ", "9" * 25, "٣"])
def test_pax_size_that_is_no_number(size: str) -> None:
    rejected(pax_header([("size", size)]) + member_header(0) + pad(PAYLOAD) + bytes(1024))


@pytest.mark.parametrize(
    "body",
    [
        b"13 size=9733",  # no newline
        b"14 size=9733\n",  # too long
        b"12 size=9733\n",  # too short
        b"0 size=9733\n",
        b"-13 size=9733\n",
        b"size=9733\n",
        b"99999999999999999999999 size=9733\n",
        b"3 \n",
        b"2 \n",
        b"13 size 9733\n",
    ],
)
def test_damaged_pax_body(body: bytes) -> None:
    # A record without "=" or without a key is damage as well: nothing may be guessed from it.
    fields = {"name": "overlaybd.pax", "size": octal(len(body), 12), "typeflag": "x"}
    rejected(tar_header(fields) + pad(body) + member_header(0) + pad(PAYLOAD) + bytes(1024))


@pytest.mark.parametrize("typeflag", ["x", "g", "L", "K"])
@pytest.mark.parametrize("size", [1 << 20, (1 << 33) - 1])
def test_header_body_beyond_the_head(typeflag: str, size: int) -> None:
    fields = {"name": "x", "size": octal(size, 12), "typeflag": typeflag}
    rejected(tar_header(fields) + pad(PAYLOAD), 1 << 34)


def test_endless_headers() -> None:
    rejected(long_name("n") * 100 + member_header(0) + bytes(1024))


def test_endless_empty_pax_headers() -> None:
    empty = tar_header({"name": "p", "size": octal(0, 12), "typeflag": "g"})
    rejected(empty * 100 + member_header(0) + bytes(1024))


def test_headers_without_member() -> None:
    rejected(pax_header([("size", "5")]) + bytes(4096))


# --- writing


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 20000))
def test_writes_what_a_strict_reader_accepts(size: int) -> None:
    payload = Random(size).randbytes(size)
    data = wrapped(payload)
    assert parse_tar(data).payload == payload
    assert payload_of(data) == payload


@pytest.mark.parametrize("size", [0, 1, 9, 10, 99, 98, 999, 12345, 2**33, 2**40, 2**63])
def test_pax_record_length_counts_itself(size: int) -> None:
    head = tarball.wrap_head(size)
    assert len(head) == tarball.WRAPPER_SIZE == 1536
    record = pax_record("size", str(size))
    assert head[512:1024] == record.ljust(512, b"\0")
    member = tarball.parse_tar(head, size + 1536, NAME)
    assert (member.offset, member.size) == (1536, size)


def test_example_of_the_specification() -> None:
    data = wrapped(PAYLOAD)
    assert len(data) == 12800
    assert data[512:525] == b"13 size=9733\n"
    assert data[124:136] == b"         13 ".replace(b"13", b"15")
    assert data[148:156] == b"  5354 \0"


def test_header_equals_the_reference_apart_from_the_mode() -> None:
    reference = golden.data_of("zfile/b1.lz4-16k.tar.zfile")
    size = parse_tar(reference).payload
    head = bytearray(tarball.wrap_head(len(size)))
    assert head[:1024] == reference[:1024]
    start, length = LAYOUT["mode"]
    for block in (head, expected := bytearray(reference[:1536])):
        block[1024 + start : 1024 + start + length] = bytes(length)
        block[1024 + 148 : 1024 + 156] = bytes(8)
    assert head == expected


def test_other_readers_accept_what_is_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(wrapped(PAYLOAD))) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.size, member.mtime) == ("overlaybd.commit", len(PAYLOAD), 0)
        assert (member.uid, member.uname, member.mode & 0o7777) == (0, "root", 0o644)
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == PAYLOAD


# --- fuzz: a declared error, or a member inside the file


def check_member(data: bytes) -> None:
    try:
        member = tarball.parse_tar(head_of(data), len(data), NAME)
    except HybridError:
        return
    assert 512 <= member.offset <= len(data)
    assert 0 <= member.size <= len(data) - member.offset


def sealed(block: bytes) -> bytes:
    """The header block with a right checksum: so that fuzz gets past it."""
    return block[:148] + b"%6o \0" % header_sum(block) + block[156:]


@settings(max_examples=300, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    changes=st.lists(
        st.tuples(st.integers(0, 7000), st.binary(min_size=1, max_size=12)), min_size=1, max_size=3
    ),
)
def test_fuzz_headers(style: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(build_tar(PAYLOAD[:2000], style))
    for at, value in changes:
        at %= len(data)
        data[at : at + len(value)] = value[: len(data) - at]
    check_member(bytes(data))
    for start in range(0, len(tar_prefix(2000, style)), 512):
        block = bytes(data[start : start + 512])
        if block[257:262] == b"ustar":
            data[start : start + 512] = sealed(block)
    check_member(bytes(data))


SPICE = (b"-", b"+", b"_", b" ", b"\0", b"\x80", b"\xff", b"8", b"=", b"\n", b"0o", b"12 size=-5\n")


@settings(max_examples=300, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    at=st.integers(0, 4000),
    value=st.sampled_from(SPICE),
    field=st.sampled_from(sorted(LAYOUT)),
)
def test_fuzz_fields_with_right_checksums(style: str, at: int, value: bytes, field: str) -> None:
    prefix = bytearray(tar_prefix(2000, style))
    starts = [s for s in range(0, len(prefix), 512) if prefix[s + 257 : s + 262] == b"ustar"]
    start = starts[at % len(starts)]
    where, size = LAYOUT[field]
    place = start + where + at % size
    prefix[place : place + len(value)] = value
    prefix[start : start + 512] = sealed(bytes(prefix[start : start + 512]))
    check_member(bytes(prefix) + pad(PAYLOAD[:2000]) + bytes(1024))
