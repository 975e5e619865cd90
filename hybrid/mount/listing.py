"""What is mounted, as ``hybrid list`` shows it. Answers within seconds whatever the servers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.mount import control
from hybrid.mount.mountinfo import MountEntry, read_mountinfo
from hybrid.mount.paths import is_mounted
from hybrid.mount.state import MountRecord, read_records

_ASK_SECONDS = 1.0


@dataclass(frozen=True)
class MountStatus:
    """A record with what is true of it now."""

    record: MountRecord
    state: str
    """
    ready       served, and mounted where the record says (or exposed as a file)
    starting    the mount is being made
    stopped     the server is stopped (SIGSTOP, a debugger): reads wait
    dead        the server has ended without cleaning up: reads fail, or wait in mode tcmu
    flushing    it is over, and the server writes the last changes of a writable mount to disk
    failed      it is over, and that did not succeed: `hybrid umount` tells the reason
    unmounted   not mounted there any more; the server ends with the last user of the tree
    """
    stats: dict[str, int] | None
    """Counters of the Device; None if the server did not answer in time."""

    def to_json(self) -> dict[str, Any]:
        value = describe_record(self.record, self.state)
        return value if self.stats is None else {**value, "stats": self.stats}


def describe_record(record: MountRecord, state: str) -> dict[str, Any]:
    """What ``--json`` shows of a mount. ``size`` is in bytes."""
    return {
        "id": record.id,
        "image": record.image,
        "digest": record.digest,
        "mode": record.mode,
        "mode_reason": record.mode_reason,
        "state": state,
        "mountpoint": record.mountpoint or None,
        "file": str(record.exposed),
        "size": record.size,
        "fstype": record.fstype or None,
        "options": record.options,
        "writable": record.writable,
        "upper": record.upper or None,
        "loop": record.loop or None,
        "device": record.device or None,
        "pid": record.pid,
        "log": str(record.log),
        "created": record.created,
    }


def list_mounts() -> list[MountStatus]:
    """All mounts of this user, oldest first."""
    records = read_records()
    entries = read_mountinfo()
    states = [_state_of(record, entries) for record in records]
    stats = _ask_stats(records, states)
    return [
        MountStatus(record, state, stats.get(record.id))
        for record, state in zip(records, states, strict=True)
    ]


def _state_of(record: MountRecord, entries: list[MountEntry]) -> str:
    process = record.server.state()
    if not process:
        return "failed" if record.failure.exists() else "dead"
    if process in "Tt":
        return "stopped"
    if not record.ready:
        return "starting"
    if record.flushing.exists():
        return "flushing"
    if record.mountpoint and not is_mounted(record, entries):
        return "unmounted"
    return "ready"


def _ask_stats(records: list[MountRecord], states: list[str]) -> dict[str, dict[str, int]]:
    asked = [
        record
        for record, state in zip(records, states, strict=True)
        if state in ("ready", "unmounted")
    ]
    if not asked:
        return {}
    answers = control.ask_all([record.control for record in asked], "stats", _ASK_SECONDS)
    return {
        record.id: answer["stats"]
        for record, answer in zip(asked, answers, strict=True)
        if answer and isinstance(answer.get("stats"), dict)
    }
