"""The control socket of a server: one JSON object per line, asked and answered.

    {"command": "status"}   ->  {"id", "pid", "handles", "read_errors", "stats": {...}}
    {"command": "stats"}    ->  {"stats": {...}}
    {"command": "stop"}     ->  {"stopping": true}: an orderly end, as with SIGTERM
    anything else           ->  {"error": "..."}

The socket has mode 0600 in a 0700 directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

_MAX_LINE = 64 * 1024  # bytes of a request or answer
_IDLE_SECONDS = 10.0
_BACKLOG = 16

Answer = dict[str, Any]
Handler = Callable[[], Answer]


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into the 108 bytes of a socket address."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


async def listen(path: Path) -> trio.SocketListener:
    """Open the socket. Its directory is private, so it is so from the start."""
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with _short_path(path) as short:
        await listener.bind(short)
        os.chmod(short, 0o600)
    listener.listen(_BACKLOG)
    return trio.SocketListener(listener)


async def serve(listener: trio.SocketListener, handlers: Mapping[str, Handler]) -> None:
    """Answer requests until cancelled. A client that talks nonsense hurts only itself."""

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for line in _lines(stream):
                    await stream.send_all(_encode(_answer(line, handlers)))
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return

    await trio.serve_listeners(talk, [listener])


async def _lines(stream: trio.SocketStream) -> Any:
    pending = b""
    while len(pending) <= _MAX_LINE:
        with trio.fail_after(_IDLE_SECONDS):
            part = await stream.receive_some(_MAX_LINE)
        if not part:
            return
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            yield line


def _answer(line: bytes, handlers: Mapping[str, Handler]) -> Answer:
    try:
        command = json.loads(line)["command"]
        handler = handlers[command]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": f"no such command; there are: {', '.join(handlers)}"}
    return handler()


def _encode(value: Answer) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def ask(path: Path, command: str, seconds: float) -> Answer | None:
    """One question to one server; None if there is no good answer within ``seconds``."""
    with trio.move_on_after(seconds):
        try:
            return await _ask(path, command)
        except (OSError, ValueError, trio.BrokenResourceError):
            return None
    return None


async def _ask(path: Path, command: str) -> Answer | None:
    client = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with _short_path(path) as short, client:
        await client.connect(short)
        async with trio.SocketStream(client) as stream:
            await stream.send_all(_encode({"command": command}))
            received = b""
            while not received.endswith(b"\n"):
                part = await stream.receive_some(_MAX_LINE)
                if not part or len(received) > _MAX_LINE:
                    return None
                received += part
    answer = json.loads(received)
    return answer if isinstance(answer, dict) else None


def ask_all(paths: Sequence[Path], command: str, seconds: float) -> list[Answer | None]:
    """The same question to many servers at once; ``seconds`` bounds the whole of it."""
    answers: list[Answer | None] = [None] * len(paths)

    async def ask_into(index: int) -> None:
        answers[index] = await ask(paths[index], command, seconds)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for index in range(len(paths)):
                nursery.start_soon(ask_into, index)

    trio.run(run)
    return answers
