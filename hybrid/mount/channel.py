"""The line between ``hybrid mount`` and the server it forked: a socket pair, one JSON per line.

    server -> parent   {"ready": {...}}      the image is open, and this is its disk
    parent -> server   {"expose": "uio3"}    the kernel's side is prepared ("" where there is none)
    server -> parent   {"serving": true}     from now on reads of the disk are answered
    parent -> server   {"attached": true}    the mount stands and is recorded

Instead of each of its lines the server may send {"error": {...}}, and then ends. The end of the
stream says that the other side is gone. A server whose parent goes away before "attached" undoes
the mount: nobody else would ever take it away.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

import trio

from hybrid.errors import HybridError, decode_error, encode_error

_MAX_MESSAGE = 64 * 1024  # bytes


@dataclass(frozen=True)
class Ready:
    """What the server says of the disk that it has opened."""

    size: int
    """Bytes."""
    digest: str
    identity: str
    """Differs whenever the bytes of the disk might differ, see ``Image.identity``."""
    writable: bool
    fstype: str
    """"" if the disk holds no file system that hybrid knows."""
    drivers: list[str]
    options: str
    notice: str
    mounts_files: bool
    can_be_written: bool = True
    """Whether the file system is of a kind that can."""
    is_ext: bool = False
    lacks_journal: bool = False
    wants_check: bool = False
    """See ``DetectedFilesystem``."""


class ParentEnd:
    """The end of ``hybrid mount``; blocking, since that has nothing else to do."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = b""

    def receive_ready(self) -> Ready | None:
        """Wait until the image is open. Raises the server's error; None if it died silently."""
        message = self._receive()
        return None if message is None else Ready(**message["ready"])

    def expose(self, place: str) -> bool:
        """Let the server serve. Raises its error; False if it died silently."""
        self._send({"expose": place})
        return self._receive() is not None

    def send_attached(self) -> None:
        self._send({"attached": True})

    def close(self) -> None:
        self._channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.sendall(_encode(message))
        except ConnectionError:
            return  # the next receive tells

    def _receive(self) -> dict[str, Any] | None:
        while b"\n" not in self._received:
            try:
                part = self._channel.recv(_MAX_MESSAGE)
            except ConnectionError:
                return None
            if not part:
                return None
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise decode_error(message["error"])
        return message


class ServerEnd:
    """The end of the server, in its trio run."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""

    async def send_ready(self, ready: Ready) -> None:
        await self._send({"ready": asdict(ready)})

    async def send_serving(self) -> None:
        await self._send({"serving": True})

    async def send_error(self, error: HybridError) -> None:
        await self._send({"error": encode_error(error)})

    async def receive(self) -> dict[str, Any]:
        """The parent's next message, {} if it is gone."""
        while b"\n" not in self._received:
            try:
                part = await self._stream.receive_some(_MAX_MESSAGE)
            except trio.BrokenResourceError:
                return {}
            if not part:
                return {}
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._stream.send_all(_encode(message))
        except trio.BrokenResourceError:
            return  # ``receive`` tells


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
