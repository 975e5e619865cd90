"""Docker's credential helpers: programs ``docker-credential-NAME`` that know logins.

What they say on stdout may hold a password even if they fail, so it never gets into messages.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from hybrid.errors import ConfigError

MAX_OUTPUT_BYTES = 64 << 10
"""Of each output. A login is a few hundred bytes, an identity token a few thousand."""
_MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class _Result:
    exit_status: int
    stdout: bytes
    stderr: bytes


async def ask_helper(
    name: str, server: str, file: Path, timeout_seconds: float
) -> tuple[str, str] | None:
    """(user name, secret) from ``docker-credential-NAME get``; None if it has nothing for a server.

    ``file`` is where the helper is named, for messages. Raises ConfigError naming the helper. It
    is killed if it gives no answer in time, or more than MAX_OUTPUT_BYTES.
    """
    program = f"docker-credential-{name}"
    what = f"credential helper {program} (named in {file})"
    try:
        with trio.fail_after(timeout_seconds):
            result = await _run([program, "get"], f"{server}\n".encode())
    except trio.TooSlowError as error:
        hint = "is it waiting for somebody to unlock it?"
        raise ConfigError(f"{what}: no answer in {timeout_seconds:g} s", hint=hint) from error
    except OSError as error:
        hint = "install it, or take it out of that file"
        raise ConfigError(f"{what} cannot be run: {error.strerror}", hint=hint) from error
    if result is None:
        raise ConfigError(f"{what} gives more than {MAX_OUTPUT_BYTES} bytes")
    if result.exit_status == 0:
        return _login(what, result.stdout)
    if b"credentials not found" in (result.stdout + result.stderr).lower():
        return None
    said = _first_line(result.stderr) or f"exit status {result.exit_status}"
    hint = f"to see all that it says: echo {server} | {program} get"
    raise ConfigError(f"{what} failed: {said}", hint=hint)


async def _run(command: list[str], stdin: bytes) -> _Result | None:
    """Run a program to its end; None, with the program killed, if it says too much."""
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, process.stdin, stdin)
            for stream, output in ((process.stdout, stdout), (process.stderr, stderr)):
                nursery.start_soon(_collect, stream, output, nursery.cancel_scope)
            await process.wait()
    finally:
        # Not SIGTERM first: somebody waits for this mount, and the program has nothing to save.
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    if max(len(stdout), len(stderr)) > MAX_OUTPUT_BYTES:
        return None
    return _Result(process.returncode or 0, bytes(stdout), bytes(stderr))


async def _send(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        # A helper need not read what it is not interested in.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)


async def _collect(
    stream: trio.abc.ReceiveStream, output: bytearray, everything: trio.CancelScope
) -> None:
    async with stream:
        async for part in stream:
            output += part
            if len(output) > MAX_OUTPUT_BYTES:
                everything.cancel()
                return


def _login(what: str, stdout: bytes) -> tuple[str, str]:
    try:
        answer = json.loads(stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{what} gave no Username and Secret in JSON") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise ConfigError(f"{what} gave a Username or Secret that is no string")
    return username, secret


def _first_line(output: bytes) -> str:
    line = output.decode(errors="replace").strip().partition("\n")[0]
    return "".join(c for c in line if c.isprintable())[:_MAX_SHOWN_CHARACTERS]
