"""Checkpoint files: an index as of a moment, locked by whoever reads what it refers to.

While the reader, a process of its own, has the file locked, the writer of the layer frees nothing
that was in use then. So the end of the reader, whatever it is, is the end of the checkpoint; and a
writer that dies leaves its checkpoints to its successor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from hybrid.core.storage_errors import storage_error
from hybrid.errors import UsageError

PREFIX = "checkpoint-"


@contextlib.contextmanager
def locked_checkpoint(directory: Path) -> Iterator[Path]:
    """For a reader: a new checkpoint file, locked until the end of the block. Yields its path."""
    path = directory / f"{PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(error, f"cannot make {path}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def check_checkpoint(path: Path, directory: Path) -> None:
    """Raises UsageError for what is no checkpoint file of a directory."""
    if path.parent != directory or not path.name.startswith(PREFIX):
        raise UsageError(f"{path} is no checkpoint file of {directory}")


def is_read(path: Path) -> bool:
    """Whether somebody has a checkpoint locked; also if that cannot be found out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
