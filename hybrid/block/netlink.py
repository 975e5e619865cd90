"""The netlink family TCM-USER: what the kernel tells of TCMU devices, and wants answered.

Whether the kernel waits for answers is a switch of the whole module (SET_FEATURES) that outlives
the process that turned it on. hybrid never touches it. A device with ``nl_reply_supported=-1`` is
left out of it, so that in normal life nobody has to listen, and nobody does: a listener does
harm. As long as one is in the group, the kernel waits for the removal of *any* device to be
answered; with none, it goes on. A server therefore listens only if its own device asks for
answers, which somebody else must have arranged.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from types import TracebackType

import trio

from hybrid.block.kernel_files import read_value
from hybrid.block.names import Target
from hybrid.block.netlink_codec import (
    FAMILY,
    GROUP,
    Event,
    EventKind,
    Message,
    decode_event,
    decode_family,
    decode_status,
    encode_answer,
    encode_family_request,
    split_messages,
)
from hybrid.errors import FormatError, SystemSupportError

logger = logging.getLogger(__name__)

_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
"""Bytes: an event takes 1-2 KiB of it. With the default, 50 devices at once overrun it."""
_MAX_DATAGRAM = 64 << 10  # bytes
_KERNEL_PORT = 0
_SECONDS = 5.0
_GO_ON_SECONDS = 0.5
"""How long those that are let go have to come back."""


class EventSocket:
    """A socket in the group ``config`` of the family TCM-USER."""

    def __init__(self, receive_buffer: int = _RECEIVE_BUFFER) -> None:
        """Join the group. ``receive_buffer`` in bytes. Raises SystemSupportError."""
        self.overruns = 0
        """How often the kernel found the buffer full, and dropped events."""
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        try:
            self._socket.bind((0, 0))
            self._family = self._join(receive_buffer)
        except BaseException:
            self._socket.close()
            raise

    def _join(self, receive_buffer: int) -> int:
        _set_receive_buffer(self._socket, receive_buffer)
        self._socket.settimeout(_SECONDS)
        self._socket.send(encode_family_request(FAMILY, self._next_sequence()))
        # Nothing else can come before we are in the group.
        message = split_messages(self._socket.recv(_MAX_DATAGRAM))[0]
        if (status := decode_status(message)) is not None:
            raise SystemSupportError(
                f"the kernel has no netlink family {FAMILY}: {os.strerror(status)}",
                hint="load the module: modprobe target_core_user",
            )
        family = decode_family(message)
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, family.groups[GROUP])
        self._socket.setblocking(False)
        return family.id

    def __enter__(self) -> EventSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    async def receive(self) -> list[Event]:
        """Wait for the next events. Empty after something else, or if events were lost."""
        await trio.lowlevel.wait_readable(self._socket)
        try:
            datagram, sender = self._socket.recvfrom(_MAX_DATAGRAM)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.overruns += 1
            logger.warning("netlink events of TCMU devices were lost (%d times)", self.overruns)
            return []
        if sender[0] != _KERNEL_PORT:
            return []
        try:
            found = [self._decode(message) for message in split_messages(datagram)]
        except FormatError as error:
            logger.warning("a netlink message makes no sense: %s", error)
            return []
        return [event for event in found if event is not None]

    def answer(self, event: Event, status: int) -> None:
        """Let the kernel go on. ``status`` is 0 or a negative errno, which the caller there gets.

        Raises OSError.
        """
        self._socket.send(encode_answer(self._family, event, status, self._next_sequence()))

    def _decode(self, message: Message) -> Event | None:
        status = decode_status(message)
        if status is None:
            return decode_event(message) if message.kind == self._family else None
        if status:
            logger.warning("the kernel did not take our answer: %s", os.strerror(status))
        return None

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence


async def serve_events(target: Target) -> None:
    """Answer what the kernel wants to know of our device, until cancelled.

    Returns at once if the kernel does not wait for answers of this device (the normal case).
    Removal is agreed to; another size or configuration is refused with EOPNOTSUPP.
    """
    if not expects_answers(target):
        return
    logger.warning("%s wants answers by netlink (nl_reply_supported)", target.name)
    with EventSocket() as events:
        while True:
            for event in await events.receive():
                if event.label == target.uio_label:
                    _answer(events, event)


def _answer(events: EventSocket, event: Event) -> None:
    status = -errno.EOPNOTSUPP if event.kind == EventKind.RECONFIG else 0
    logger.info("netlink event %s of %s: %d", event.kind.name, event.label, status)
    try:
        events.answer(event, status)
    except OSError as error:
        logger.warning("cannot answer %s of %s: %s", event.kind.name, event.label, error.strerror)


def expects_answers(target: Target) -> bool:
    """Whether the kernel may wait for netlink answers about this device.

    Not to be asked while the device is being removed: configfs would wait for that to end.
    """
    value = read_value(target.backstore / "attrib" / "nl_reply_supported")
    return value.isdecimal() and int(value) > 0


def _set_receive_buffer(connection: socket.socket, size: int) -> None:
    """Beyond the limit of the system where that is allowed, else up to it."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
