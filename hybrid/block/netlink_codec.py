"""Messages of generic netlink and of its family TCM-USER. Pure functions over bytes.

Native byte order; every message and attribute is padded to 4 bytes (kernel:
Documentation/userspace-api/netlink/specs.rst, include/uapi/linux/{netlink,genetlink}.h and
target_core_user.h).

    message      length u32, type u16, flags u16, sequence u32, port u32, then the payload
    generic      command u8, version u8, 2 bytes reserved, then attributes
    attribute    length u16 (with these 4 bytes), type u16 (the top 2 bits are flags), value
    error        (type 2) errno s32, 0 or negative, then the header of the request
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

from hybrid.errors import FormatError

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_S32 = struct.Struct("=i")
_U32 = struct.Struct("=I")
_U16 = struct.Struct("=H")

_ERROR = 2
_TYPE_MASK = 0x3FFF
_REQUEST = 1
_ACK = 4

CONTROL_FAMILY = 16
_CONTROL_VERSION = 2
_GET_FAMILY = 3
_FAMILY_ID = 1
_FAMILY_NAME = 2
_FAMILY_GROUPS = 7
_GROUP_NAME = 1
_GROUP_ID = 2

FAMILY = "TCM-USER"
GROUP = "config"
VERSION = 2
_DEVICE = 1
_MINOR = 2
_STATUS = 7
_DEVICE_ID = 8
_ANSWER = 3
"""What is added to the command of an event to answer it."""


class EventKind(IntEnum):
    ADDED = 1
    REMOVED = 2
    RECONFIG = 3


class Event(NamedTuple):
    """What the kernel tells of a TCMU device."""

    kind: EventKind
    label: str
    """``Target.uio_label``: ``tcm-user/<hba>/<name>/<config>``."""
    minor: int
    """The number of the uio device."""
    device_id: int
    """The kernel's index of the device, which an answer names."""


class Message(NamedTuple):
    kind: int
    """The family, or 2 for an error or acknowledgement."""
    sequence: int
    payload: bytes


class Family(NamedTuple):
    id: int
    groups: dict[str, int]


def split_messages(datagram: bytes) -> list[Message]:
    """The messages of one datagram. Raises FormatError."""
    messages = []
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise FormatError("a netlink message is cut short", offset=offset)
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise FormatError(f"a netlink message claims {length} bytes", offset=offset)
        payload = datagram[offset + _HEADER.size : offset + length]
        messages.append(Message(kind, sequence, payload))
        offset += _padded(length)
    return messages


def decode_status(message: Message) -> int | None:
    """The errno, positive, that a request ended with (0: fine); None for another message.

    Raises FormatError.
    """
    if message.kind != _ERROR:
        return None
    if len(message.payload) < _S32.size:
        raise FormatError("a netlink error is cut short")
    (status,) = _S32.unpack_from(message.payload)
    return -status  # type: ignore[no-any-return]


def decode_event(message: Message) -> Event | None:
    """The event in a message of the family TCM-USER; None for a kind that is not known.

    Raises FormatError.
    """
    command, attributes = _decode_generic(message.payload)
    if command not in EventKind.__members__.values():
        return None
    return Event(
        EventKind(command),
        _text(attributes, _DEVICE),
        _number(attributes, _MINOR, _U32),
        _number(attributes, _DEVICE_ID, _U32),
    )


def encode_answer(family: int, event: Event, status: int, sequence: int) -> bytes:
    """The answer to an event: ``status`` is 0 or a negative errno."""
    attributes = {_STATUS: _S32.pack(status), _DEVICE_ID: _U32.pack(event.device_id)}
    return _encode(family, event.kind + _ANSWER, VERSION, _ACK, attributes, sequence)


def encode_family_request(name: str, sequence: int) -> bytes:
    """Ask the controller which number the family ``name`` has."""
    attributes = {_FAMILY_NAME: name.encode("ascii") + b"\0"}
    return _encode(CONTROL_FAMILY, _GET_FAMILY, _CONTROL_VERSION, 0, attributes, sequence)


def decode_family(message: Message) -> Family:
    """The controller's reply. Raises FormatError."""
    _command, attributes = _decode_generic(message.payload)
    groups = {}
    for _index, entry in _attributes(attributes.get(_FAMILY_GROUPS, b"")):
        group = dict(_attributes(entry))
        groups[_text(group, _GROUP_NAME)] = _number(group, _GROUP_ID, _U32)
    return Family(_number(attributes, _FAMILY_ID, _U16), groups)


def _encode(
    family: int,
    command: int,
    version: int,
    flags: int,
    attributes: Mapping[int, bytes],
    sequence: int,
) -> bytes:
    body = _GENERIC.pack(command, version, 0)
    for kind, value in attributes.items():
        length = _ATTRIBUTE.size + len(value)
        body += _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)
    return _HEADER.pack(_HEADER.size + len(body), family, _REQUEST | flags, sequence, 0) + body


def _decode_generic(payload: bytes) -> tuple[int, dict[int, bytes]]:
    if len(payload) < _GENERIC.size:
        raise FormatError("a generic netlink message is cut short")
    command, _version, _reserved = _GENERIC.unpack_from(payload)
    return command, dict(_attributes(payload[_GENERIC.size :]))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        if len(data) - offset < _ATTRIBUTE.size:
            raise FormatError("a netlink attribute is cut short", offset=offset)
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise FormatError(f"a netlink attribute claims {length} bytes", offset=offset)
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _padded(length)


def _number(attributes: Mapping[int, bytes], kind: int, form: struct.Struct) -> int:
    value = attributes.get(kind, b"")
    if len(value) != form.size:
        raise FormatError(f"the netlink attribute {kind} has {len(value)} bytes, not {form.size}")
    (number,) = form.unpack(value)
    return number  # type: ignore[no-any-return]


def _text(attributes: Mapping[int, bytes], kind: int) -> str:
    value = attributes.get(kind)
    if value is None:
        raise FormatError(f"the netlink attribute {kind} is missing")
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _padded(length: int) -> int:
    return (length + 3) & ~3
