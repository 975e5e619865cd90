"""Running `hybrid` for tests of verbs on files: the same entry point, without a new process each.

Starting Python takes longer than most of these verbs. ``spawn`` starts a process all the same, for
what depends on one: signals, the environment, streams.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hybrid.cli import main


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _logging_restored():
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Done(code, *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    logger = logging.getLogger("hybrid")
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process, with pipes for its output."""
    command = [sys.executable, "-m", "hybrid", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **(pipes | options))


def succeed(*arguments: object) -> str:
    """stdout of a command that must work, and say nothing on stderr."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), arguments
    return done.stdout


def succeed_json(*arguments: object) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def fail(code: int, *arguments: object) -> str:
    """The one line on stderr of a command that must fail with this exit code."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    line = done.stderr.removeprefix("hybrid: ")
    assert line != done.stderr
    assert line.count("\n") == 1
    return line
