"""What processes have open, as far as leftovers are told by it. Only links of /proc are read.

A server of hybrid has its log as stdout for as long as it lives, and holds its uio device; so what
no process has open has no server; if all processes can be seen.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.core.bounded import run_bounded
from hybrid.mount.mountinfo import parse_mountinfo

_SCAN_SECONDS = 5.0
_LOG = re.compile(r"(/.*/[0-9a-f]{8})/log(?:\.1)?")
_DELETED = " (deleted)"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""Linux: include/linux/proc_ns.h, PROC_PID_INIT_INO."""


@dataclass(frozen=True)
class OpenFiles:
    """Who has what open now."""

    writers: dict[str, int] = field(default_factory=dict)
    """Directory of a mount -> a process whose stdout or stderr is its log."""
    devices: dict[str, int] = field(default_factory=dict)
    """Device node -> a process that has it open."""
    mounted: frozenset[str] = frozenset()
    """``major:minor`` and source of every mount in all namespaces that can be seen."""


def sees_all() -> bool:
    """Whether we can look into every process of this machine: root, and not in a container.

    Only then does it mean anything that no process has something open.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return False
    return os.geteuid() == 0 and namespace == _FIRST_PID_NAMESPACE


def look_at_processes(proc: Path = Path("/proc")) -> OpenFiles:
    """Raises TimeoutExpiredError if the look takes too long."""
    found = run_bounded("the look at /proc", lambda: _scan(proc), _SCAN_SECONDS)
    return OpenFiles(found["writers"], found["devices"], frozenset(found["mounted"]))


def _scan(proc: Path) -> dict[str, object]:
    writers: dict[str, int] = {}
    devices: dict[str, int] = {}
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        pid = int(process.name)
        for number, target in _links(process / "fd"):
            log = _LOG.fullmatch(target) if number in ("1", "2") else None
            if log is not None:
                writers[log[1]] = pid
            elif target.startswith("/dev/"):
                devices[target] = pid
    return {"writers": writers, "devices": devices, "mounted": sorted(_mounted(proc))}


def _links(directory: Path) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                yield name, os.readlink(directory / name).removesuffix(_DELETED)


def _mounted(proc: Path) -> set[str]:
    namespaces: set[str] = set()
    found: set[str] = set()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")
            if namespace in namespaces:
                continue
            entries = parse_mountinfo(os.fsdecode((process / "mountinfo").read_bytes()))
            namespaces.add(namespace)
            found |= {entry.device for entry in entries} | {entry.source for entry in entries}
    return found
