"""The table of mounts, /proc/self/mountinfo. Reading it asks no file system anything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class MountEntry:
    """One line of mountinfo (see proc(5)): what is mounted where."""

    mount_id: int
    device: str
    """``major:minor`` of the files in it."""
    mount_point: str
    fstype: str
    source: str
    options: str
    """Options of the file system (not those of the mount)."""


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Entries in the order of the kernel: of two mounts on one path the later one is on top."""
    return [_parse_line(line) for line in text.splitlines() if " - " in line]


def _parse_line(line: str) -> MountEntry:
    mount_part, _, type_part = line.partition(" - ")
    fields = mount_part.split(" ")
    fstype, source, options = [*type_part.split(" "), "", ""][:3]
    return MountEntry(
        mount_id=int(fields[0]),
        device=fields[2],
        mount_point=_unescape(fields[4]),
        fstype=fstype,
        source=_unescape(source),
        options=options,
    )


def _unescape(text: str) -> str:
    # The kernel writes space, tab, newline, backslash and # as octal, anything else as raw bytes.
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def read_mountinfo() -> list[MountEntry]:
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def top_mount(entries: Iterable[MountEntry], mount_point: str) -> MountEntry | None:
    """What one sees at ``mount_point``, or None if nothing is mounted exactly there."""
    found = [entry for entry in entries if entry.mount_point == mount_point]
    return found[-1] if found else None


def mounts_below(entries: Iterable[MountEntry], mount_point: str) -> list[MountEntry]:
    """Mounts inside the tree at ``mount_point``."""
    prefix = mount_point.rstrip("/") + "/"
    return [entry for entry in entries if entry.mount_point.startswith(prefix)]
