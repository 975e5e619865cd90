"""The command line of tools/vm."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vm.errors import UsageError

_DESCRIPTION = """\
Run a shell command as root in a throw-away guest with Debian's 6.12 kernel.

The guest sees this machine's files; what it writes is thrown away, except below --out DIR.
/tmp, /run, /var/tmp and /dev/shm are fresh. The current directory and the checkout stay where
they are. There is no network but loopback, no udevd, and nothing on stdin."""
_EXIT_CODES = """\
The exit code is that of the command. Of tools/vm itself: 2 the command line makes no sense,
124 the command did not end in time, 125 the guest ended without an exit code or did not start,
130 interrupted, 143 terminated. See docs/testing.md."""

MIN_MEMORY = 512
"""MiB. The kernel and its first files alone take half of it."""


@dataclass(frozen=True)
class Options:
    """What the caller asked for."""

    command: str
    timeout: float = 600
    """Seconds from the start of the guest."""
    memory: int = 4096
    """MiB."""
    out: tuple[Path, ...] = ()
    """Directories whose changes survive: absolute, without symbolic links."""
    env: tuple[str, ...] = ()
    """Names of variables to pass on beside PATH, HOME and LANG."""
    scratch: int = 0
    """MiB of an ext4 disk at /scratch; 0: none."""
    console: Path | None = None
    """Where the messages of the guest's kernel go."""
    modules: bool = True
    """Load the modules that the suite needs."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (tools/vm --help)")


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse a command line. Raises UsageError; --help prints, and raises SystemExit(0)."""
    found, surplus = _parser().parse_known_args(arguments)
    if surplus and not found.command:
        raise UsageError(f"unknown option: {surplus[0]} (tools/vm --help)")
    if surplus or len(found.command) > 1:
        raise UsageError("give the command as one word: tools/vm [OPTION]... 'ls -l'")
    if not found.command or not found.command[0].strip():
        raise UsageError("no command (tools/vm --help)")
    return Options(
        command=found.command[0],
        timeout=found.timeout,
        memory=found.memory,
        out=tuple(dict.fromkeys(found.out)),
        env=tuple(found.env),
        scratch=found.scratch,
        console=found.console,
        modules=found.modules,
    )


def _parser() -> _Parser:
    parser = _Parser(
        prog="tools/vm",
        usage="tools/vm [OPTION]... 'COMMAND'",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = Options("")
    add = parser.add_argument
    add("--timeout", type=_seconds, default=default.timeout, metavar="S", help="seconds (600)")
    add("--memory", type=_memory, default=default.memory, metavar="MIB", help="MiB (4096)")
    add("--out", type=_directory, action="append", default=[], metavar="DIR",
        help="a directory whose changes survive; may be repeated")  # fmt: skip
    add("--env", type=_name, action="append", default=[], metavar="NAME",
        help="pass a variable on, beside PATH, HOME and LANG; may be repeated")  # fmt: skip
    add("--scratch", type=_mib, default=0, metavar="MIB", help="mount an ext4 disk at /scratch")
    add("--console", type=Path, metavar="FILE", help="write the kernel's messages to FILE")
    add("--no-modules", dest="modules", action="store_false", help="load no kernel modules")
    add("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    # Python's waits take no more than some hundred years; NaN is not between anything.
    if not 0 < value <= 1e8:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text}")
    return value


def _mib(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"not a number of MiB: {text}")
    return int(text)


def _memory(text: str) -> int:
    value = _mib(text)
    if value < MIN_MEMORY:
        raise argparse.ArgumentTypeError(f"the guest needs at least {MIN_MEMORY} MiB")
    return value


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"not the name of a variable: {text}")
    return text


def _directory(text: str) -> Path:
    try:
        path = Path(text).resolve(strict=True)
    except (OSError, RuntimeError):
        raise argparse.ArgumentTypeError(f"no such directory: {text}") from None
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"not a directory: {text}")
    if path == Path("/"):
        raise argparse.ArgumentTypeError("the whole machine is not shared: give a directory")
    return path
