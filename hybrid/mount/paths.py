"""Finding the mount that a user means, without touching anything that is mounted."""

from __future__ import annotations

import os
from collections.abc import Collection

from hybrid.errors import MountPointError, NotFoundError, UsageError
from hybrid.mount.mountinfo import MountEntry, read_mountinfo, top_mount
from hybrid.mount.state import MountRecord, read_records

_MAX_LINKS = 40  # as the kernel
_MIN_PREFIX = 4
"""Digits of an id that name a mount: fewer may be meant as the name of a directory."""


def absolute(path: str) -> str:
    """``path`` made absolute without looking at it. Raises MountPointError without a directory."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise MountPointError(
            f"cannot tell what {path} is: the current directory does not exist any more",
            hint="use an absolute path, or an id",
        ) from error


def resolve_outside(path: str, barriers: Collection[str]) -> str:
    """``path`` made absolute, its symbolic links resolved, but nothing at or below a barrier read.

    A barrier is an absolute path, such as a mount point whose file system may not answer.
    """
    pending = absolute(path).split("/")[:0:-1]
    done = ""
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", ".", ".."):
            done = os.path.dirname(done).rstrip("/") if name == ".." else done
            continue
        step = f"{done}/{name}"
        if step in barriers:
            return "/".join([step, *reversed(pending)])
        target = _read_link(step)
        if target is None or links == _MAX_LINKS:
            done = step
            continue
        links += 1
        pending.extend(target.split("/")[::-1])
        done = "" if target.startswith("/") else done
    return done or "/"


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def barriers_of(records: Collection[MountRecord]) -> set[str]:
    """Every place where a server of ours would have to answer."""
    places = {record.mountpoint for record in records if record.mountpoint}
    return places | {str(record.fuse_directory) for record in records}


def is_mounted(record: MountRecord, entries: Collection[MountEntry]) -> bool:
    """Whether the record's file system is still mounted where it was (perhaps covered)."""
    return any(
        entry.mount_point == record.mountpoint and entry.source == record.source
        for entry in entries
        if record.source
    )


def find_target(target: str) -> MountRecord:
    """The mount at a mount point, of an exposed file, or with an id (prefix). Or NotFoundError."""
    if not target:
        raise UsageError("MOUNTPOINT|ID is empty", hint="an unset variable in a script?")
    records = read_records()
    for record in records:
        if record.id == target:
            return record
    entries = read_mountinfo()
    path = resolve_outside(target, barriers_of(records))
    for name in (absolute(target), path):
        found = [record for record in records if name in _places(record)]
        if found:
            # An older mount there may have been taken away behind our back.
            return max(found, key=lambda record: (is_mounted(record, entries), record.created))
    if len(target) >= _MIN_PREFIX and target.strip("0123456789abcdef") == "":
        return _find_id(records, target)
    raise _not_found(target, top_mount(entries, path))


def _find_id(records: list[MountRecord], prefix: str) -> MountRecord:
    found = [record for record in records if record.id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} mounts have" if found else "no mount has"
    raise NotFoundError(f"{problem} an id that starts with {prefix}", hint=_hint())


def _places(record: MountRecord) -> tuple[str, ...]:
    places = (record.mountpoint, record.device, str(record.disk), str(record.fuse_directory))
    return tuple(place for place in places if place)


def _not_found(target: str, entry: MountEntry | None) -> NotFoundError:
    if entry:
        return NotFoundError(
            f"{target} was not mounted by this user's hybrid: it is {entry.fstype} "
            f"from {entry.source}",
            hint="see `hybrid list`; umount(8) takes other mounts away",
        )
    return NotFoundError(f"no mount of hybrid at or named {target}", hint=_hint())


def _hint() -> str:
    hint = "see `hybrid list`"
    return hint if os.geteuid() == 0 else f"{hint}; mounts of root are shown and removed with sudo"
