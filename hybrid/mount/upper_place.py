"""Where the changes of a writable mount are kept: the command's side of it.

    DATA/uppers/<id>/    without --upper; kept after the mount

DATA is $HYBRID_DATA_DIR if set, /var/lib/hybrid for root, $XDG_DATA_HOME/hybrid (or
~/.local/share/hybrid) for other users. What is in the directory is made by the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from pathlib import Path

from hybrid.config import load_image_config
from hybrid.core.reference import ConfigReference, parse_image
from hybrid.core.storage_errors import storage_error
from hybrid.core.upper_directory import UpperDirectory, destroy
from hybrid.errors import HybridError, NotFoundError, UsageError
from hybrid.mount.changes import Changes, Place

_TOKEN_BYTES = 4
UPPER_NAME = re.compile(r"[0-9a-f]{8}")
"""Names of directories that nobody has chosen."""


def data_root() -> Path:
    """The directory of what a user keeps. It need not exist yet."""
    override = os.environ.get("HYBRID_DATA_DIR")
    if override:
        return Path(override).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/hybrid")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "hybrid"


def uppers_root() -> Path:
    """The directory of the uppers whose place nobody has chosen. It need not exist yet."""
    return data_root() / "uppers"


class UpperPlace(Place):
    """One directory, made if it is absent, and put back as it was if the mount does not come to be.

    ``token`` is stored with a layer that is made in it: so one that another command makes at the
    same time is not taken for ours.
    """

    def __init__(self, directory: Path, token: str) -> None:
        self.directory = directory
        self.upper = str(directory)
        self.token = token
        self._made: list[Path] = []
        self._was_empty = False

    def make(self) -> None:
        try:
            self._make_directories()
            self._was_empty = not os.listdir(self.directory)
        except NotADirectoryError as error:
            raise UsageError(f"{self.directory} is no directory") from error
        except OSError as error:
            self.take_back()
            raise storage_error(error, f"cannot keep changes in {self.directory}") from error

    def _make_directories(self) -> None:
        missing = []
        directory = self.directory
        while not directory.exists() and directory != directory.parent:
            missing.append(directory)
            directory = directory.parent
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)
            self._made.append(directory)

    def take_back(self) -> None:
        if self._was_empty:
            self._empty()
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _empty(self) -> None:
        try:
            lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as UpperDirectory does
            if self._is_ours():
                destroy(self.directory, keep_directory=True)
        except BlockingIOError:
            return  # somebody else has begun to use it
        finally:
            os.close(lock)

    def _is_ours(self) -> bool:
        try:
            return UpperDirectory(self.directory).manifest.origin.get("token") == self.token
        except NotFoundError:
            return True  # our server ended before it had finished
        except HybridError:
            return False


def plan_changes(image: str, upper: Path | None, size: int) -> Changes:
    """For ``hybrid mount --rw``. Nothing is made yet; ``image`` has absolute paths.

    Raises UsageError (two places for the changes), and what reading a config raises.
    """
    reference = parse_image(image)
    if isinstance(reference, ConfigReference):
        own = load_image_config(reference.path).upper
        if own is not None:
            if upper is not None:
                raise UsageError(
                    f"{reference.path} names an upper of its own, {own.data}",
                    hint="mount it without --upper",
                )
            return Changes(os.path.abspath(own.data), size)
    token = secrets.token_hex(_TOKEN_BYTES)
    directory = uppers_root() / token if upper is None else upper.absolute()
    return Changes(str(directory), size, UpperPlace(directory, token))
