"""One thing that was left behind, and the errors of taking it away."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.errors import PermissionNeededError, SystemSupportError

YOUNG_SECONDS = 60.0
"""What was made so lately may belong to a command that is still at work on it."""


@dataclass(frozen=True)
class Leftover:
    """What is left and what to do about it, in one line each."""

    kind: str
    """``mount``, ``state``, ``log``, ``upper``, ``loop``, ``fuse``, ``target`` or ``hang``."""
    name: str
    """An id or a path."""
    text: str
    remedy: str
    remove: Callable[[], None] | None = None
    """Takes it away, or raises a HybridError. None: that is not for ``hybrid gc`` to do."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "text": self.text,
            "remedy": self.remedy,
            "removable": self.remove is not None,
        }


def is_young(path: Path) -> bool:
    """Whether a file or directory was changed lately. One that is gone is not young."""
    try:
        return time.time() - path.lstat().st_mtime < YOUNG_SECONDS
    except OSError:
        return False


def has_listener(control: Path) -> bool:
    """Whether a process listens on a control socket, also one of another container, or stopped."""
    try:
        directory = os.open(control.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            # The whole path may be too long for a socket address.
            client.connect(f"/proc/self/fd/{directory}/{control.name}")
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True  # It has more to answer than it can, for example.
    finally:
        os.close(directory)
    return True


def elsewhere(directory: Path) -> str:
    """The remedy for a mount whose record is in another state directory than ours."""
    return f"HYBRID_STATE_DIR={directory.parent} hybrid umount {directory.name}"


@contextlib.contextmanager
def removal_errors(path: Path) -> Iterator[None]:
    """An OSError leaves as the HybridError for a file that cannot be removed."""
    try:
        yield
    except PermissionError as error:
        raise PermissionNeededError(
            f"cannot remove {path}: {error.strerror}", hint="try with sudo"
        ) from error
    except OSError as error:
        hint = "there is more in it than hybrid made" if error.errno == errno.ENOTEMPTY else ""
        raise SystemSupportError(f"cannot remove {path}: {error.strerror}", hint=hint) from error
