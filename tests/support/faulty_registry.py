"""A hand-written HTTP server on trio that misbehaves as told. For faults only, see registry.py.

async with faulty_registry(lambda request: Reply(503)) as server:
    ... server.host ... server.requests ...
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

MAX_HEAD_BYTES = 65536
TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS greeting."""


@dataclass(frozen=True)
class Request:
    """``path`` includes the query; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What to send, and how to break it.

    ``cut_after``: close after that many bytes of the body. ``stated_length``: a Content-Length
    other than the true one (-1: none at all). ``silent``: never answer. ``drop``: close at once.
    ``gate``: answer when it is set.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stated_length: int | None = None
    silent: bool = False
    drop: bool = False
    gate: trio.Event | None = None


Handler = Callable[[Request], Reply]


class FaultyRegistry:
    """The running server: its ``host`` and what was asked of it."""

    def __init__(self, handler: Handler, hang_up_on_tls: bool) -> None:
        self.host = ""
        self.hang_up_on_tls = hang_up_on_tls
        self.requests: list[Request] = []
        self.connections = 0
        self._handler = handler

    def count(self, path_part: str = "") -> int:
        """How many requests had this in their path."""
        return sum(path_part in request.path for request in self.requests)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection; ends when the client leaves or a reply breaks it."""
        self.connections += 1
        try:
            async with stream:
                buffer = b""
                while True:
                    request, buffer = await read_request(stream, buffer, self.hang_up_on_tls)
                    if request is None or not await self._answer(stream, request):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _answer(self, stream: trio.abc.Stream, request: Request) -> bool:
        self.requests.append(request)
        reply = self._handler(request)
        if reply.silent:
            await trio.sleep_forever()
        if reply.gate is not None:
            await reply.gate.wait()
        if reply.drop:
            return False
        length = len(reply.body) if reply.stated_length is None else reply.stated_length
        head = f"HTTP/1.1 {reply.status} Whatever\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head += f"Content-Length: {length}\r\n" if length >= 0 else "Connection: close\r\n"
        await stream.send_all(head.encode() + b"\r\n" + reply.body[: reply.cut_after])
        return reply.cut_after is None and length == len(reply.body)


async def read_request(
    stream: trio.abc.Stream, buffer: bytes, hang_up_on_tls: bool = False
) -> tuple[Request | None, bytes]:
    """The next request and what came behind it; (None, b"") at the end of the connection."""
    while b"\r\n\r\n" not in buffer:
        part = await stream.receive_some()
        if not part or len(buffer) > MAX_HEAD_BYTES:
            return None, b""
        buffer += part
        if hang_up_on_tls and buffer[:1] == TLS_HANDSHAKE:
            return None, b""
    head, _, rest = buffer.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    parts = line.split(" ")
    if len(parts) != 3:
        return None, b""
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        rest += await stream.receive_some()
    return Request(parts[0], parts[1], headers, rest[:length]), rest[length:]


def range_reply(data: bytes, request: Request) -> Reply:
    """The correct answer to a range request for ``data``."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if match is None:
        return Reply(200, data)
    first, last = int(match[1]), min(int(match[2]), len(data) - 1)
    if first > last:
        return Reply(416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(206, data[first : last + 1], headers)


@asynccontextmanager
async def faulty_registry(
    handler: Handler, tls: ssl.SSLContext | None = None, *, hang_up_on_tls: bool = False
) -> AsyncIterator[FaultyRegistry]:
    """A server on a free port of 127.0.0.1, for the length of the block.

    Without ``tls`` it is silent to a TLS greeting, or closes with ``hang_up_on_tls``.
    """
    server = FaultyRegistry(handler, hang_up_on_tls)
    listeners: list[trio.abc.Listener] = list(await trio.open_tcp_listeners(0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    if tls is not None:
        listeners = [trio.SSLListener(listener, tls) for listener in listeners]
    server.host = f"127.0.0.1:{port}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()
