"""MODE SENSE and MODE SELECT: bytes laid out by hand (SPC-4 7.5, SBC-3 6.5)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.scsi_judges import Sense, hex_cdb, logical_unit, parse_sense, refusal, reply

from hybrid.block.scsi import (
    CheckCondition,
    LogicalUnit,
    Op,
    Request,
    check_mode_select,
    decode,
)

CACHED = logical_unit()
WRITE_THROUGH = logical_unit(write_cache=False)
READ_ONLY = logical_unit(writable=False)

RECOVERY = bytes.fromhex("01 0a" + 10 * "00")
CACHING = bytes.fromhex("08 12 04" + 17 * "00")
NO_CACHE = bytes.fromhex("08 12 00" + 17 * "00")
CONTROL = bytes.fromhex("0a 0a 02 10 00 00 00 00 ff ff 00 00")
ALL = RECOVERY + CACHING + CONTROL


@pytest.mark.parametrize(
    ("unit", "page", "body"),
    [
        (CACHED, "01", RECOVERY),
        (CACHED, "08", CACHING),
        (WRITE_THROUGH, "08", NO_CACHE),
        (READ_ONLY, "08", NO_CACHE),
        (CACHED, "0a", CONTROL),
        (CACHED, "3f", ALL),
        (CACHED, "88", CACHING),  # page control: default values
        (CACHED, "48", bytes.fromhex("08 12") + bytes(18)),  # page control: changeable values
    ],
)
@pytest.mark.parametrize("subpage", ["00", "ff"])
def test_mode_sense(unit: LogicalUnit, page: str, body: bytes, subpage: str) -> None:
    specific = 0x90 if unit is READ_ONLY else 0x10
    short = bytes((3 + len(body), 0, specific, 0)) + body
    assert reply(unit, f"1a 00 {page} {subpage} ff 00") == short
    assert reply(unit, f"1a 08 {page} {subpage} ff 00") == short  # DBD
    long = bytes((0, 6 + len(body), 0, specific, 0, 0, 0, 0)) + body
    assert reply(unit, f"5a 00 {page} {subpage} 000000 00ff 00") == long
    assert reply(unit, f"5a 18 {page} {subpage} 000000 00ff 00") == long  # DBD and LLBAA


@pytest.mark.parametrize("allocation", [0, 3, 4, 23, 24, 255])
def test_mode_sense_is_cut_to_the_allocation_length(allocation: int) -> None:
    # The mode data length still says how much there would have been.
    whole = bytes.fromhex("17 00 10 00") + CACHING
    assert reply(CACHED, f"1a 00 08 00 {allocation:02x} 00") == whole[:allocation]


def test_a_large_allocation_length() -> None:
    whole = bytes.fromhex("001a 00 10 00 00 0000") + CACHING
    assert reply(CACHED, "5a 00 08 00 000000 0100 00") == whole


@pytest.mark.parametrize("prefix", ["1a 00 {0} {1} ff 00", "5a 00 {0} {1} 000000 00ff 00"])
@pytest.mark.parametrize(
    ("page", "subpage", "sense"),
    [
        ("c8", "00", Sense(5, 0x3900)),  # page control: saved values
        ("08", "01", Sense(5, 0x2400, field="cdb 3")),
        ("1c", "00", Sense(5, 0x2400, field="cdb 2.5")),
        ("00", "00", Sense(5, 0x2400, field="cdb 2.5")),
    ],
)
def test_mode_sense_refused(prefix: str, page: str, subpage: str, sense: Sense) -> None:
    assert refusal(CACHED, prefix.format(page, subpage)) == sense


# --- MODE SELECT

SELECT_6 = "15 10 0000 {:02x} 00"
SELECT_10 = "55 10 00 00000000 {:04x} 00"


def select(unit: LogicalUnit, cdb: str, parameters: bytes, sent: int | None = None) -> None:
    request = decode(unit, hex_cdb(cdb.format(len(parameters))))
    assert request.op == Op.MODE_SELECT
    assert request.length == len(parameters)
    check_mode_select(unit, request, parameters[:sent])


def select_refused(
    unit: LogicalUnit, cdb: str, parameters: bytes, sent: int | None = None
) -> Sense:
    with pytest.raises(CheckCondition) as caught:
        select(unit, cdb, parameters, sent)
    return parse_sense(caught.value.sense)


@pytest.mark.parametrize("pages", [b"", CACHING, CONTROL + RECOVERY, ALL])
def test_select_of_the_current_values(pages: bytes) -> None:
    select(CACHED, SELECT_6, bytes(4) + pages)
    select(CACHED, SELECT_10, bytes(8) + pages)


def test_select_of_a_long_list() -> None:
    # Also the high byte of the length counts.
    select(CACHED, SELECT_10, bytes(8) + ALL * 6)


@pytest.mark.parametrize(
    ("cdb", "mode_sense"),
    [(SELECT_6, "1a 00 3f 00 ff 00"), (SELECT_10, "5a 00 3f 00 000000 00ff 00")],
)
@pytest.mark.parametrize("unit", [CACHED, WRITE_THROUGH, READ_ONLY])
def test_select_takes_what_sense_gave(unit: LogicalUnit, cdb: str, mode_sense: str) -> None:
    select(unit, cdb, reply(unit, mode_sense))


@given(st.integers(4, 4 + len(ALL) - 1), st.integers(1, 255))
@example(4, 0x0B)  # one page code for another
@example(16, 0x80)
def test_select_of_any_other_value(position: int, change: int) -> None:
    parameters = bytearray(bytes(4) + ALL)
    parameters[position] ^= change
    is_page_code = position in (4, 16, 36)
    if is_page_code and change == 0x80:  # PS, reserved in MODE SELECT
        select(CACHED, SELECT_6, bytes(parameters))
        return
    sense = select_refused(CACHED, SELECT_6, bytes(parameters))
    if is_page_code:  # of another page perhaps: then its values are wrong, or it is cut off
        assert sense.code in (0x2600, 0x1A00)
    else:
        assert sense == Sense(5, 0x2600, field=f"list {position}")


def test_switching_the_cache_off_is_refused() -> None:
    sense = select_refused(CACHED, SELECT_6, bytes(4) + NO_CACHE)
    assert sense == Sense(5, 0x2600, field="list 6")
    sense = select_refused(WRITE_THROUGH, SELECT_10, bytes(8) + CACHING)
    assert sense == Sense(5, 0x2600, field="list 10")


@pytest.mark.parametrize(
    ("cdb", "header", "field"),
    [
        (SELECT_6, "00 01 00 00", "list 1"),  # medium type
        (SELECT_6, "00 00 00 08", "list 3"),  # a block descriptor
        (SELECT_10, "0000 01 00 00 00 0000", "list 2"),
        (SELECT_10, "0000 00 00 00 00 0008", "list 6"),
    ],
)
def test_select_headers(cdb: str, header: str, field: str) -> None:
    sense = select_refused(CACHED, cdb, bytes.fromhex(header) + CACHING)
    assert sense == Sense(5, 0x2600, field=field)


@pytest.mark.parametrize("cdb", [SELECT_6, SELECT_10])
def test_select_lists_that_are_cut_off(cdb: str) -> None:
    header = 4 if cdb == SELECT_6 else 8
    too_short = Sense(5, 0x1A00)
    whole = bytes(header) + CACHING
    for length in (1, header - 1, header + 1, header + 2, len(whole) - 1):
        assert select_refused(CACHED, cdb, whole[:length]) == too_short
    assert select_refused(CACHED, cdb, whole, sent=header) == too_short
    assert select_refused(CACHED, cdb, whole, sent=0) == too_short


@pytest.mark.parametrize("unit", [CACHED, READ_ONLY])
def test_select_of_nothing(unit: LogicalUnit) -> None:
    assert decode(unit, hex_cdb("15 10 0000 00 00")) == Request(Op.NOTHING)
    assert decode(unit, hex_cdb("55 10 00 00000000 0000 00")) == Request(Op.NOTHING)


@pytest.mark.parametrize(
    ("cdb", "field"),
    [
        ("15 11 0000 18 00", "cdb 1.0"),  # SP: save
        ("15 12 0000 18 00", "cdb 1.1"),  # RTD: revert to defaults
        ("55 11 00 00000000 0018 00", "cdb 1.0"),
    ],
)
def test_select_options(cdb: str, field: str) -> None:
    assert refusal(CACHED, cdb) == Sense(5, 0x2400, field=field)


def holds_current_pages(body: bytes) -> bool:
    while body:
        plain = bytes((body[0] & 0x7F,)) + body[1:]  # PS is reserved in MODE SELECT
        page = next((page for page in (RECOVERY, CACHING, CONTROL) if plain.startswith(page)), b"")
        if not page:
            return False
        body = body[len(page) :]
    return True


pages = st.sampled_from([RECOVERY, CACHING, NO_CACHE, CONTROL, b"\x88" + CACHING[1:]])


@given(
    st.sampled_from([SELECT_6, SELECT_10]),
    st.binary(max_size=40) | st.lists(pages, max_size=4).map(b"".join),
    st.integers(0, 60),
)
def test_select_of_any_bytes(cdb: str, body: bytes, cut: int) -> None:
    header = 4 if cdb == SELECT_6 else 8
    body = body[: len(body) - cut] if cut <= len(body) else body
    if holds_current_pages(body):
        select(CACHED, cdb, bytes(header) + body)
    else:
        assert select_refused(CACHED, cdb, bytes(header) + body).code in (0x2600, 0x1A00)
