"""The control socket of a server: one JSON object per line, asked and answered.

    {"command": "status"}   ->  {"id", "pid", "handles", "read_errors", "stats": {...}}
    {"command": "stats"}    ->  {"stats": {...}}
    {"command": "stop"}     ->  {"stopping": true}: an orderly end, as with SIGTERM
    {"command": "checkpoint", "lock": PATH}  ->  {"point": {...}}, see WritableDisk.checkpoint
    {"command": "snapshot"} ->  {"sealed": PATH}
    anything else           ->  {"error": "..."}

A command that fails answers {"failure": {...}}, a HybridError as ``encode_error`` has it.

The socket has mode 0600 in a 0700 directory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from hybrid.errors import (
    HybridError,
    SystemSupportError,
    TimeoutExpiredError,
    UnsupportedError,
    decode_error,
    encode_error,
)

logger = logging.getLogger(__name__)

_MAX_LINE = 64 * 1024  # bytes of a request or answer
_IDLE_SECONDS = 10.0
_BACKLOG = 16

Answer = dict[str, Any]
Handler = Callable[[Answer], Awaitable[Answer]]
"""Is given the whole request."""


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
                    await stream.send_all(_encode(await _answer(line, handlers)))
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


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> Answer:
    try:
        request = json.loads(line)
        handler = handlers[request["command"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": f"no such command; there are: {', '.join(handlers)}"}
    try:
        return await handler(request)
    except HybridError as error:
        return {"failure": encode_error(error)}
    except Exception as error:
        # The disk is more important than this command.
        logger.exception("the command %s failed", request["command"])
        bug = SystemSupportError(f"internal error: {type(error).__name__}: {error}")
        return {"failure": encode_error(bug)}


def _encode(value: Answer) -> bytes:
    return json.dumps(value).encode() + b"\n"


def order(path: Path, command: str, seconds: float, **fields: Any) -> Answer:
    """Let a server carry out a command, and return what it answers.

    Raises what went wrong there, or TimeoutExpiredError: no answer within ``seconds``.
    """
    answer = trio.run(ask, path, {"command": command, **fields}, seconds)
    if answer is None:
        raise TimeoutExpiredError(
            f"the server at {path} gave no answer to {command!r} within {seconds:g} seconds",
            hint="`hybrid list` shows whether it lives",
        )
    if "failure" in answer:
        raise decode_error(answer["failure"])
    if "error" in answer:
        raise UnsupportedError(f"the server at {path} does not know {command!r}")
    return answer


async def ask(path: Path, request: Answer, seconds: float) -> Answer | None:
    """One question to one server; None if there is no good answer within ``seconds``."""
    with trio.move_on_after(seconds):
        try:
            return await _ask(path, request)
        except (OSError, ValueError, trio.BrokenResourceError):
            return None
    return None


async def _ask(path: Path, request: Answer) -> Answer | None:
    client = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with _short_path(path) as short, client:
        await client.connect(short)
        async with trio.SocketStream(client) as stream:
            await stream.send_all(_encode(request))
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
        answers[index] = await ask(paths[index], {"command": command}, seconds)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for index in range(len(paths)):
                nursery.start_soon(ask_into, index)

    trio.run(run)
    return answers
