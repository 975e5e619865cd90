"""A guest's life: start, output, end.

It reads its first files from memory and speaks through pipes: however tools/vm ends, no files are
left. qemu ends with tools/vm, even if that is killed, because the kernel is asked to see to it.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vm.errors import GuestTimeoutError, OutputError, VmError
from vm.programs import not_installed, open_path, run
from vm.qemu import PROGRAM, Machine, command_line
from vm.stream import Console, Pump

_LAST_WORDS_SECONDS = 2
"""How long threads may take to pass on what a killed guest has said."""
_MKFS_SECONDS = 120


@dataclass(frozen=True)
class Guest:
    """A guest to be run."""

    kernel: Path
    initrd: bytes
    mark: bytes
    """What the guest ends its streams with."""
    timeout: float
    """Seconds from its start to its last output."""
    memory: int
    """MiB."""
    shared: tuple[Path, ...] = ()
    scratch: int = 0
    """MiB of an ext4 disk; 0: none."""
    console: BinaryIO | None = None
    """Where to write the kernel's messages."""


def run_guest(guest: Guest) -> int:
    """Run it to its end; its output goes to descriptors 1 and 2. Returns the exit status.

    Raises GuestTimeoutError; OutputError if the output cannot be written; VmError if the guest ends
    without a status.
    """
    if shutil.which(PROGRAM) is None:
        raise not_installed(PROGRAM)
    with ExitStack() as stack:
        initrd = stack.enter_context(_memory_file(guest.initrd))
        scratch = stack.enter_context(_scratch_disk(guest.scratch))
        pipes = [os.pipe() for _ in range(3)]
        (stdout, stderr, console), writers = zip(*pipes, strict=True)
        ...
