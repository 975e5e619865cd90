"""Where the changes of a writable mount are kept: the command's side of it.

    DATA/uppers/<id>/    without --upper; kept after the mount

DATA is $HYBRID_DATA_DIR if set, /var/lib/hybrid for root, $XDG_DATA_HOME/hybrid (or
~/.local/share/hybrid) for other users. What is in the directory is made by the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.config import load_image_config
from hybrid.core.reference import ConfigReference, parse_image
from hybrid.core.storage import storage_error
from hybrid.core.upper_directory import destroy
from hybrid.errors import BusyError, UsageError

_ID_BYTES = 4


def data_root() -> Path:
    """The directory of what a user keeps. It need not exist yet."""
    override = os.environ.get("HYBRID_DATA_DIR")
    if override:
        return Path(override).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/hybrid")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "hybrid"


def new_upper() -> Path:
    """A name for a directory that nobody has yet."""
    return data_root() / "uppers" / secrets.token_hex(_ID_BYTES)


class Place:
    """What a mount needs to have made for its changes. This one: nothing, it is there already."""

    def make(self) -> None:
        """Raises BusyError, UsageError, and what writing raises."""

    def take_back(self) -> None:
        """The mount did not come to be, and nobody uses the place any more."""

    def release(self) -> None:
        """The mount stands."""


class UpperPlace(Place):
    """One directory, made if it is absent, and put back as it was if the mount does not come to be.

    From ``make`` on until ``release`` no other command can have it as a place.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: list[Path] = []
        self._was_empty = False
        self._lock = -1

    def make(self) -> None:
        try:
            self._make_directories()
            self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._was_empty = not os.listdir(self.directory)
        except BlockingIOError as error:
            self.release()
            raise BusyError(
                f"another command is at work on {self.directory}", hint="wait for it"
            ) from error
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
            directory.mkdir(mode=0o700)
            self._made.append(directory)

    def take_back(self) -> None:
        """Remove what was not there before."""
        if self._was_empty:
            destroy(self.directory, keep_directory=True)
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        self.release()

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@dataclass(frozen=True)
class Changes:
    """Where the changes of one mount go."""

    name: str = ""
    """The directory, or the file of a config's own upper; "" for a Device without either."""
    size: int = 0
    """Bytes that the disk shall have, and its file system fill; 0: as they are."""
    place: Place = field(default_factory=Place)

    @property
    def directory(self) -> Path | None:
        """None if the changes go to an upper that a config names."""
        return self.place.directory if isinstance(self.place, UpperPlace) else None

    def check_outside(self, mountpoint: Path) -> None:
        """Raises UsageError if the changes of a mount were to be kept in the mounted tree."""
        place, tree = os.path.realpath(self.name), os.path.realpath(mountpoint)
        if self.name and f"{place}/".startswith(f"{tree.rstrip('/')}/"):
            raise UsageError(
                f"the changes cannot be kept in {self.name}, below the mount point",
                hint="name a directory elsewhere",
            )


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
    directory = upper.absolute() if upper is not None else new_upper()
    return Changes(str(directory), size, UpperPlace(directory))
