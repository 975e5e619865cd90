"""Disks and mounts made in this process through either front end, for the conformance suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.mount_driver import opener

from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.changes import Changes
from hybrid.mount.detach import detach
from hybrid.mount.state import MountRecord, read_record


def expose(
    raw: Path, mode: str, mountpoint: Path | None = None, *, writable: bool = False, **faults: Any
) -> MountRecord:
    """Serve a raw file as ``hybrid mount`` does, with the faults of ``mount_driver``."""
    origin = {"raw": str(raw), "opening": "", "writable": writable, "faults": faults}
    changes = Changes() if writable else None
    return attach(MountRequest(raw.name, opener(origin), origin, mountpoint, mode, changes=changes))


@contextmanager
def exposed(
    raw: Path, mode: str, mountpoint: Path | None = None, **faults: Any
) -> Iterator[MountRecord]:
    """The same for the length of a block. Nothing of it may be left after that."""
    record = expose(raw, mode, mountpoint, **faults)
    try:
        yield record
    finally:
        current = read_record(record.directory)
        if current is not None:
            detach(current, lazy=True)
        reap(record)


def reap(record: MountRecord) -> None:
    """Servers are our children here: without this a dead one stays as a zombie."""
    try:
        os.waitpid(record.pid, os.WNOHANG)
    except ChildProcessError:
        return
