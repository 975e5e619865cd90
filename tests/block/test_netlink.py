"""The codec of generic netlink against messages written here from the kernel's headers, and bytes
that make no sense; and the kernel's own controller, which every Linux has.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.block import names, netlink
from hybrid.block import netlink_codec as codec
from hybrid.block.names import Target
from hybrid.block.netlink import EventSocket, expects_answers, serve_events
from hybrid.block.netlink_codec import Event, EventKind
from hybrid.errors import FormatError, SystemSupportError

FAMILY = 0x1F
TARGET = Target("0a1b2c3d", names.wwn_of("0a1b2c3d"))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, payload: bytes, sequence: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, sequence, 0) + payload


def generic(command: int, *attributes: bytes) -> bytes:
    return struct.pack("=BBH", command, 2, 0) + b"".join(attributes)


def event_bytes(
    command: int, label: str = "tcm-user/1/a/b", minor: int = 3, index: int = 7
) -> bytes:
    return generic(
        command,
        attribute(1, label.encode() + b"\0"),
        attribute(2, struct.pack("=I", minor)),
        attribute(8, struct.pack("=I", index)),
    )


@pytest.mark.parametrize("kind", list(EventKind))
def test_events_are_read(kind: EventKind) -> None:
    (found,) = codec.split_messages(message(FAMILY, event_bytes(kind)))
    assert found.kind == FAMILY
    assert codec.decode_event(found) == Event(kind, "tcm-user/1/a/b", 3, 7)


def test_attributes_that_are_not_known_are_passed_over() -> None:
    more = event_bytes(3) + attribute(5, bytes(8)) + attribute(3, b"") + attribute(0x4009, b"\1")
    (found,) = codec.split_messages(message(FAMILY, more))
    assert codec.decode_event(found) == Event(EventKind.RECONFIG, "tcm-user/1/a/b", 3, 7)


@pytest.mark.parametrize("command", [0, 4, 7, 255])
def test_other_commands_are_no_events(command: int) -> None:
    (found,) = codec.split_messages(message(FAMILY, event_bytes(command)))
    assert codec.decode_event(found) is None


def test_several_messages_in_one_datagram() -> None:
    datagram = message(2, struct.pack("=i", 0) + bytes(16)) + message(FAMILY, event_bytes(1), 9)
    first, second = codec.split_messages(datagram)
    assert codec.decode_status(first) == 0
    assert codec.decode_status(second) is None
    assert second.sequence == 9


def test_errors_are_read() -> None:
    (found,) = codec.split_messages(message(2, struct.pack("=i", -errno.ENODEV) + bytes(16)))
    assert codec.decode_status(found) == errno.ENODEV


def test_an_answer_is_what_the_kernel_expects() -> None:
    event = Event(EventKind.RECONFIG, "tcm-user/1/a/b", 3, 7)
    expected = struct.pack("=IHHII", 36, FAMILY, 5, 12, 0) + generic(
        6, attribute(7, struct.pack("=i", -95)), attribute(8, struct.pack("=I", 7))
    )
    assert codec.encode_answer(FAMILY, event, -errno.EOPNOTSUPP, 12) == expected


def test_a_family_is_asked_for_and_read() -> None:
    assert codec.encode_family_request("TCM-USER", 1) == message(
        16, generic(3, attribute(2, b"TCM-USER\0")), 1
    ).replace(b"\x10\0\0\0\1", b"\x10\0\1\0\1", 1)
    group = attribute(1, attribute(2, struct.pack("=I", 5)) + attribute(1, b"config\0"))
    payload = generic(
        1, attribute(2, b"TCM-USER\0"), attribute(1, struct.pack("=H", 31)), attribute(7, group)
    )
    (found,) = codec.split_messages(message(16, payload))
    assert codec.decode_family(found) == codec.Family(31, {"config": 5})


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x10\0\0\0",
        struct.pack("=IHHII", 15, 2, 0, 0, 0),
        struct.pack("=IHHII", 17, 2, 0, 0, 0),
        struct.pack("=IHHII", 0, 2, 0, 0, 0),
        struct.pack("=IHHII", 0xFFFFFFFF, 2, 0, 0, 0),
        message(2, b"\0\0\0"),
        message(FAMILY, b"\1"),
        message(FAMILY, generic(1, b"\4\0")),
        message(FAMILY, generic(1, struct.pack("=HH", 3, 1))),
        message(FAMILY, generic(1, struct.pack("=HH", 9, 1) + bytes(4))),
        message(FAMILY, generic(1)),
        message(FAMILY, generic(1, attribute(1, b"x\0"), attribute(2, bytes(4)))),
        message(FAMILY, event_bytes(1) + attribute(2, bytes(3))),
    ],
)
def test_broken_messages_are_format_errors(datagram: bytes) -> None:
    with pytest.raises(FormatError):
        read_everything(datagram)


def read_everything(datagram: bytes) -> list[object]:
    """The declared errors, or an answer."""
    found: list[object] = []
    for part in codec.split_messages(datagram):
        status = codec.decode_status(part)
        found.append(codec.decode_event(part) if status is None else status)
    return found


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_declared_error(datagram: bytes) -> None:
    try:
        read_everything(datagram)
    except FormatError:
        return


@given(st.binary(max_size=200))
def test_any_reply_of_the_controller_is_an_answer_or_a_declared_error(payload: bytes) -> None:
    try:
        codec.decode_family(codec.Message(16, 0, payload))
    except FormatError:
        return


@given(st.integers(0, 255), st.integers(0, 80), st.integers(0, 7))
@example(0xFF, 0, 7)
def test_a_damaged_event_is_an_answer_or_a_declared_error(value: int, place: int, bit: int) -> None:
    damaged = bytearray(message(FAMILY, event_bytes(2)))
    damaged[place % len(damaged)] = value ^ (1 << bit)
    try:
        read_everything(bytes(damaged))
    except FormatError:
        return


@given(
    st.sampled_from(list(EventKind)),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_every_event_is_read_back(kind: EventKind, label: str, minor: int, index: int) -> None:
    payload = event_bytes(kind, label, minor, index)
    assert read_everything(message(FAMILY, payload)) == [Event(kind, label, minor, index)]


@given(
    st.sampled_from(list(EventKind)), st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1)
)
def test_every_answer_is_well_formed(kind: EventKind, index: int, status: int) -> None:
    answer = codec.encode_answer(FAMILY, Event(kind, "", 0, index), status, 1)
    (found,) = codec.split_messages(answer)
    assert found.payload == generic(
        kind + 3, attribute(7, struct.pack("=i", status)), attribute(8, struct.pack("=I", index))
    )


def test_the_kernel_understands_a_family_request() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as connection:
        connection.bind((0, 0))
        connection.settimeout(5)
        connection.send(codec.encode_family_request("nlctrl", 4))
        (found,) = codec.split_messages(connection.recv(65536))
    assert found.sequence == 4
    family = codec.decode_family(found)
    assert family.id == 16
    assert "notify" in family.groups


@pytest.mark.skipif(Path("/sys/module/target_core_user").exists(), reason="the module is loaded")
def test_without_the_module_it_says_so() -> None:
    with pytest.raises(SystemSupportError, match="no netlink family TCM-USER") as caught:
        EventSocket()
    assert "modprobe" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "expected"), [("-1\n", False), ("0\n", False), ("1\n", True), (None, False)]
)
async def test_only_a_device_that_wants_answers_is_listened_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    monkeypatch.setattr(names, "ROOT", tmp_path)
    attributes = TARGET.backstore / "attrib"
    attributes.mkdir(parents=True)
    if value is not None:
        (attributes / "nl_reply_supported").write_text(value)
    assert expects_answers(TARGET) is expected

    def refused() -> None:
        raise ConnectionError("listens")

    monkeypatch.setattr(netlink, "EventSocket", refused)
    if expected:
        with pytest.raises(ConnectionError, match="listens"):
            await serve_events(TARGET)
    else:
        await serve_events(TARGET)
