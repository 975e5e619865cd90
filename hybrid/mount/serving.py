"""The contract of a front end, as the server sees it; its counterpart is ``hybrid.mount.front``.

Everything runs in the trio run of one server, and nothing here waits for this server's own answers.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from hybrid.core.device import Device
from hybrid.mount.state import MountRecord

_SERVINGS = {
    "fuse": ("hybrid.mount.fuse_serving", "FuseServing"),
    "tcmu": ("hybrid.mount.tcmu_serving", "TcmuServing"),
}


@dataclass(frozen=True)
class ServingTask:
    """What is to be served, and whom to tell."""

    device: Device
    record: MountRecord
    on_release: Callable[[], None]
    """To be called whenever ``in_use`` may have become false."""
    on_unmounted: Callable[[], None]
    """To be called when the disk should be taken away by a command."""


class Serving(ABC):
    """One Device, served to the kernel."""

    def __init__(self, task: ServingTask) -> None:
        self.task = task

    @property
    def size(self) -> int:
        """Bytes of the disk, as the kernel sees it."""
        return self.task.device.size

    @property
    @abstractmethod
    def in_use(self) -> bool:
        """Whether the server must go on: somebody has the disk, or its kernel side still stands."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """``handles`` (how often the disk is open, as far as known) and ``read_errors``."""

    @abstractmethod
    def open(self, place: str, *, takes_over: bool) -> None:
        """Begin to serve the kernel's side; ``place`` is what ``Front.prepare`` returned.

        ``takes_over``: another server began it, and died.
        """

    @abstractmethod
    async def run(self) -> None:
        """Answer the kernel until its side is gone, or until cancelled."""

    @abstractmethod
    def close(self) -> None:
        """Undo ``open``. What it did not get to is harmless."""


def serving_of(task: ServingTask) -> Serving:
    """The server's side of a mode. Only the one that is used is imported."""
    module, name = _SERVINGS[task.record.mode]
    kind: type[Serving] = getattr(importlib.import_module(module), name)
    return kind(task)


def preload(mode: str) -> None:
    """Import what a server of this mode needs, before it is forked."""
    importlib.import_module(_SERVINGS[mode][0])
