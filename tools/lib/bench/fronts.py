"""A Device as a disk: behind FUSE, as a file, or behind TCMU, as a block device.

The servers run in sessions of their own: Ctrl-C is for the benchmark, which then takes them down
in order.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import trio

from hybrid.block import configfs
from hybrid.block.arrival import wait_for_disk
from hybrid.block.names import Target, wwn_of
from hybrid.block.teardown import take_down
from hybrid.core.bounded import run_bounded
from hybrid.fuse import DISK_NAME

Environment = Mapping[str, str] | None
"""Of a server; None for our own."""

_STOP_SECONDS = 10
_EXPORT_SECONDS = 60.0
_ARRIVAL_SECONDS = 20.0


@contextlib.contextmanager
def fuse_file(device: str, environment: Environment = None) -> Iterator[tuple[Path, int]]:
    """A file that is the Device of that name (``bench.devices``), and the pid of its server."""
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-") as directory:
        process = _start(["fuse", device, directory], environment)
        try:
            _await_ready(process)
            yield Path(directory) / DISK_NAME, process.pid
        finally:
            _stop_fuse(process, directory)


def _stop_fuse(process: subprocess.Popen[str], directory: str) -> None:
    """Take the FUSE mount away, which ends the server; by force if it was only starting."""
    unmount = ["fusermount3", "-q", "-u", "-z", directory]
    subprocess.run(unmount, check=False)
    if not _has_ended(process):
        _kill(process)
        subprocess.run(unmount, check=False)


@contextlib.contextmanager
def tcmu_disk(
    device: str, size: int, *, sleeps: bool = False, environment: Environment = None
) -> Iterator[tuple[Path, int]]:
    """A SCSI disk that is the Device of that name, ``size`` bytes, and the pid of its server.

    ``sleeps``: the server sleeps as soon as there is nothing to do.
    """
    target_id = secrets.token_hex(4)
    target = Target(target_id, wwn_of(target_id))
    uio = configfs.create_backstore(target, size, read_only=True)
    with contextlib.ExitStack() as stack:
        stack.callback(configfs.remove_backstore, target)
        process = _start(["tcmu", device, target.id, uio, "0" if sleeps else "-"], environment)
        stack.callback(_stop_tcmu, process, target)
        _await_ready(process)
        yield exported_disk(target), process.pid


def exported_disk(target: Target) -> Path:
    """Give a backstore whose server runs (or that needs none) a disk; its node."""
    address: str = run_bounded(
        "making a SCSI disk", lambda: configfs.export(target), _EXPORT_SECONDS
    )
    return trio.run(wait_for_disk, address, _ARRIVAL_SECONDS)


def _stop_tcmu(process: subprocess.Popen[str], target: Target) -> None:
    """Take the device away, which ends the server; one that was only starting is killed."""
    take_down(target, lambda: process.poll() is None)
    if not _has_ended(process):
        _kill(process)


def _start(arguments: list[str], environment: Environment) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.server", *arguments],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def _await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    if process.stdout.readline() != "ready\n":
        sys.exit("bench: one of its own servers did not start")


def _has_ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
