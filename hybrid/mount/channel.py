"""The line between ``hybrid mount`` and the server it forked: a socket pair, one message each way.

    server -> parent   {"ready": {...}} or {"error": {"type", "message", "hint"}}, then a newline
    parent -> server   "attached\\n" once the mount stands

The end of the stream says that the other side is gone. A server whose parent goes away before
"attached" ends itself: nobody would ever take it away.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

from hybrid import errors
from hybrid.errors import HybridError

ATTACHED = b"attached\n"
_MAX_MESSAGE = 64 * 1024  # bytes


@dataclass(frozen=True)
class Ready:
    """What the server says of the disk that it exposes."""

    size: int
    """Bytes."""
    digest: str
    fstype: str
    """"" if the disk holds no file system that hybrid knows."""
    drivers: list[str]
    options: str
    notice: str
    mounts_files: bool


def encode_ready(ready: Ready) -> bytes:
    return json.dumps({"ready": asdict(ready)}).encode() + b"\n"


def encode_error(error: HybridError) -> bytes:
    described = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return json.dumps({"error": described}).encode() + b"\n"


def receive_ready(channel: socket.socket) -> Ready | None:
    """Wait for the server. Raises the server's error; None if it died without a word."""
    received = b""
    while not received.endswith(b"\n") and len(received) <= _MAX_MESSAGE:
        try:
            part = channel.recv(_MAX_MESSAGE)
        except ConnectionError:
            return None
        if not part:
            return None
        received += part
    message = json.loads(received)
    if "error" in message:
        error = message["error"]
        raise _decode_error(error["type"], error["message"], error["hint"])
    return Ready(**message["ready"])


def _decode_error(kind: str, message: str, hint: str) -> HybridError:
    """The same class as in the server; the nearest known one for a class from elsewhere."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HybridError):
        return found(message, hint=hint)
    return HybridError(message, hint=hint)
