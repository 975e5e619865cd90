"""The contract of a front end, as the commands see it: how a disk gets into the kernel and out.

The server's side of it is ``hybrid.mount.serving``. A command makes a mount in this order:

    prepare   what the kernel needs before the server can serve
    (the server serves)
    expose    the disk appears, as a file or a block device
    mount     its file system is mounted

and takes it away, after the tree is unmounted, with ``withdraw``; or, once the server is dead,
with ``force``, which must work whatever is left. All methods run in a command, never in the
server, since they wait for the server's answers.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path

from hybrid.mount.channel import Ready
from hybrid.mount.state import MountRecord, Recorder

_FRONTS = {
    "fuse": ("hybrid.mount.fuse_front", "FuseFront"),
    "tcmu": ("hybrid.mount.tcmu_front", "TcmuFront"),
}


class Front(ABC):
    """One per mode; has no state of its own: everything is in the record."""

    @abstractmethod
    def prepare(self, recorder: Recorder, ready: Ready) -> str:
        """Make what the server needs, and return its name for the server ("" for nothing)."""

    @abstractmethod
    def expose(self, recorder: Recorder) -> None:
        """Let the disk appear. The server answers by now."""

    @abstractmethod
    def mount(self, recorder: Recorder, mountpoint: Path, ready: Ready) -> None:
        """Mount the file system of the disk."""

    @abstractmethod
    def unmount_exposed(self, record: MountRecord, lazy: bool) -> None:
        """Of a disk that is only exposed: take away what stands for a mounted tree.

        Raises BusyError if it is in use, unless ``lazy``.
        """

    @abstractmethod
    def fail_reads(self, record: MountRecord) -> None:
        """Make the reads in flight fail, of a server that is dead, stopped or silent."""

    @abstractmethod
    def withdraw(self, record: MountRecord, lazy: bool) -> bool:
        """Orderly, with a server that answers; nothing is mounted any more.

        Returns whether the server and its record are gone. Raises BusyError if the disk is still
        in use, unless ``lazy``.
        """

    @abstractmethod
    def abandon(self, record: MountRecord) -> None:
        """Of a mount that failed half-way: as far as the server's answers are needed for it."""

    @abstractmethod
    def force(self, record: MountRecord) -> None:
        """Take away whatever is left in the kernel. The server has been killed already."""


def front_of(mode: str) -> Front:
    """The front end of a mode. Only the one that is used is imported."""
    # A damaged record has no mode; FUSE mounts are what it can have left.
    module, name = _FRONTS[mode or "fuse"]
    front: Front = getattr(importlib.import_module(module), name)()
    return front
