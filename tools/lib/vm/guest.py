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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vm.errors import GuestLostError, GuestTimeoutError, OutputClosedError, VmError
from vm.programs import not_installed, open_path, run
from vm.qemu import PROGRAM, Machine, command_line
from vm.stream import Console, Pump

_LAST_WORDS_SECONDS = 2
"""How long it may take to pass on what a guest has said before it was ended."""
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

    Raises GuestTimeoutError; OutputClosedError; GuestLostError or VmError if the guest ends without
    a status; VmError if its output cannot be written.
    """
    stdout, stderr, messages = (os.pipe() for _ in range(3))
    with _memory_file(guest.initrd) as initrd, _scratch_disk(guest.scratch) as scratch:
        machine = Machine(
            kernel=guest.kernel,
            initrd=open_path(initrd),
            memory=guest.memory,
            console=open_path(messages[1]),
            ports=(open_path(stdout[1]), open_path(stderr[1])),
            shared=guest.shared,
            scratch="" if scratch is None else open_path(scratch),
        )
        inherited = [stdout[1], stderr[1], messages[1], initrd]
        inherited += [] if scratch is None else [scratch]
        process = _start(machine, inherited, messages[1])
    for _, writer in (stdout, stderr, messages):
        os.close(writer)
    ended: queue.SimpleQueue[Pump] = queue.SimpleQueue()
    pumps = [Pump(stdout[0], 1, guest.mark, ended), Pump(stderr[0], 2, guest.mark, ended)]
    console = Console(messages[0], guest.console)
    return _attend(process, pumps, console, ended, guest.timeout)


def _start(machine: Machine, inherited: list[int], messages: int) -> subprocess.Popen[bytes]:
    """Start qemu, to be killed by the kernel when the calling thread ends, whatever ends it."""
    if shutil.which(PROGRAM) is None:
        raise not_installed(PROGRAM)
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command_line(machine)],
        stdin=subprocess.DEVNULL,
        stdout=messages,
        stderr=messages,
        pass_fds=inherited,
    )


def _attend(
    process: subprocess.Popen[bytes],
    pumps: list[Pump],
    console: Console,
    ended: queue.SimpleQueue[Pump],
    timeout: float,
) -> int:
    threads = [*pumps, console]
    try:
        for thread in threads:
            thread.start()
        in_time = _await_streams(ended, len(pumps), time.monotonic() + timeout)
    finally:
        # The guest waits for this: its output is complete, or of no use.
        process.kill()
        process.wait()
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
    if not in_time:
        reason = f"the command did not end in {timeout:g} s (--timeout gives it longer)"
        raise GuestTimeoutError(reason, console.tail())
    statuses = {pump.status for pump in pumps}
    if len(statuses) == 1 and (status := statuses.pop()) is not None:
        return status
    kind = GuestLostError if all(pump.is_silent for pump in pumps) else VmError
    raise kind("the guest ended without an exit code; its last messages:", console.tail())


def _await_streams(ended: queue.SimpleQueue[Pump], count: int, deadline: float) -> bool:
    """Wait until so many streams have ended; whether they did in time."""
    try:
        for _ in range(count):
            pump = ended.get(timeout=max(0, deadline - time.monotonic()))
            if isinstance(pump.error, BrokenPipeError):
                raise OutputClosedError("whoever read the output went away")
            if pump.error is not None:
                raise VmError(f"the output cannot be written: {pump.error.strerror}")
    except queue.Empty:
        return False
    return True


@contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("vm")
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield descriptor


@contextmanager
def _scratch_disk(size: int) -> Iterator[int | None]:
    """A disk of ``size`` MiB with an ext4, in a file without a name; None if there is no size."""
    if not size:
        yield None
        return
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(size << 20)
        descriptor = file.fileno()
        options = ["-q", "-F", "-E", "lazy_itable_init=1", open_path(descriptor)]
        run(["mkfs.ext4", *options], _MKFS_SECONDS, descriptors=[descriptor])
        yield descriptor
