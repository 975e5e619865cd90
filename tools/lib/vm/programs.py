"""Running the programs that a guest is made with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vm.errors import VmError


def say(text: str) -> None:
    """Tell the user, on stderr, what takes its time or is not as expected."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    seconds: float,
    *,
    directory: Path | None = None,
    data: bytes = b"",
    descriptors: Sequence[int] = (),
) -> bytes:
    """What a program prints, given the data on stdin. Raises VmError with its last complaint."""
    name = command[0]
    try:
        done = subprocess.run(
            command, cwd=directory, timeout=seconds, input=data, pass_fds=descriptors,
            capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise not_installed(name) from None
    except subprocess.TimeoutExpired:
        raise VmError(f"{name} did not end in {seconds:.0f} s") from None
    if done.returncode:
        complaints = done.stderr.decode(errors="replace").strip().splitlines()
        last = complaints[-1] if complaints else f"exit code {done.returncode}"
        raise VmError(f"{name} failed: {last.removeprefix('E: ')}")
    return done.stdout


def not_installed(name: str) -> VmError:
    """The error for a program that tools/setup installs."""
    return VmError(f"{name} is not installed: run tools/setup")


def open_path(descriptor: int) -> str:
    """The path by which a child opens a file that it inherits."""
    return f"/proc/self/fd/{descriptor}"
