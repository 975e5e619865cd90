"""tools/vm: from the command line to the exit code."""

from __future__ import annotations

import compileall
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from vm.errors import GuestLostError, OutputClosedError, UsageError, VmError
from vm.guest import Guest, run_guest
from vm.initrd import EARLY_MODULES, first_files, pack
from vm.kernel import Kernel, cache_directory, ready_kernel
from vm.modules import load_order
from vm.options import Options, parse_options
from vm.plan import Plan, command_script, kept_directories, passed_on
from vm.programs import say

CHECKOUT = Path(__file__).resolve().parents[3]
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal asks us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def main(arguments: Sequence[str]) -> int:
    """Run tools/vm; returns its exit code."""
    try:
        _end_on_signals()
        return _run(parse_options(arguments))
    except _Ended as ended:
        return ended.exit_code
    except OutputClosedError as error:
        return error.exit_code
    except VmError as error:
        _tell(error)
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"{place}{error.strerror or error}")
        return VmError.exit_code


def _tell(error: VmError) -> None:
    say(str(error))
    for line in error.details:
        print(f"    {line}", file=sys.stderr)


def _end_on_signals() -> None:
    def end(number: int, _: FrameType | None) -> NoReturn:
        # Once: nothing is to disturb the cleaning up.
        for other in _ENDING_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    for number in _ENDING_SIGNALS:
        # What the caller ignores (nohup, a shell's background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _run(options: Options) -> int:
    directory = _current_directory()
    with _console_file(options.console) as console:
        kernel = ready_kernel(cache_directory(os.environ))
        _compile_python()
        mark = _new_mark()
        guest = Guest(
            kernel=kernel.image,
            initrd=_initrd(options, kernel, directory, mark),
            mark=mark,
            timeout=options.timeout,
            memory=options.memory,
            shared=options.out,
            scratch=options.scratch,
            console=console,
        )
        try:
            return run_guest(guest)
        except GuestLostError as error:
            # Seen once in some hundred starts, all under emulation; the reason is not known.
            _tell(error)
            say("trying once more")
        return run_guest(guest)


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current directory does not exist any more") from None


@contextlib.contextmanager
def _console_file(path: Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    with path.open("wb", buffering=0) as file:
        yield file


def _compile_python() -> None:
    """Make the checkout's .pyc files, where they are missing or old: it is slow in the guest.

    Python itself makes none where PYTHONDONTWRITEBYTECODE is set.
    """
    for name in ("hybrid", "tests/support"):
        compileall.compile_dir(CHECKOUT / name, quiet=2)


def _new_mark() -> bytes:
    # The first byte is rare in text: what might be the beginning of the mark is held back.
    return b"\x1e" + secrets.token_hex(16).encode() + b":"


def _initrd(options: Options, kernel: Kernel, directory: Path, mark: bytes) -> bytes:
    plan = Plan(
        modules=kernel.modules.parent,
        kept=kept_directories([CHECKOUT, directory]),
        shared=options.out,
        mark=mark,
        scratch=bool(options.scratch),
        load=options.modules,
        limit=int(options.timeout) + 60,
    )
    environment = passed_on(os.environ, options.env)
    command = command_script(options.command, directory, environment)
    early = load_order(kernel.modules, EARLY_MODULES)
    return pack(first_files(early, plan.settings(), command))
