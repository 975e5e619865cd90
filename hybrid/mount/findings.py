"""What an examination says: findings in groups, and a verdict on each mode. PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hybrid.errors import HybridError


class Status(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    INFO = "info"
    """Neither good nor bad, or something that only limits what can be done."""
    WARNING = "warning"
    """Mounting works, but something should be done."""
    PROBLEM = "problem"
    """Something cannot be done until this is."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. All text is one line."""

    group: str
    """``tcmu``, ``fuse``, ``common`` or ``leftovers``."""
    name: str
    status: Status
    text: str
    remedy: str = ""
    """What to do about it; "" for nothing."""

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "name": self.name,
            "status": self.status.value,
            "text": self.text,
            "remedy": self.remedy or None,
        }


@dataclass(frozen=True)
class Verdict:
    """Whether a mode can be used here, by this user."""

    usable: bool
    """Whether it can expose disks."""
    mounts: bool
    """Whether it can mount them too, not with ``--no-mount`` only."""
    reason: str = ""
    """In one line, if it is not both."""

    def __str__(self) -> str:
        if self.usable and self.mounts:
            return "usable"
        prefix = "usable with --no-mount only" if self.usable else "not usable"
        return f"{prefix}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {"usable": self.usable, "mounts": self.mounts, "reason": self.reason or None}


def examine(
    group: str, name: str, look: Callable[[], str], *, status: Status = Status.PROBLEM
) -> Finding:
    """The finding of a check: what it returns is fine, what it raises is of the given status."""
    try:
        return Finding(group, name, Status.OK, look())
    except HybridError as error:
        return Finding(group, name, status, error.message, error.hint)
