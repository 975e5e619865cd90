"""Where the changes of a writable mount go, as ``attach`` has to know it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.errors import UsageError


class Place:
    """What a mount needs to have made for its changes. This one: nothing, it is there already."""

    upper: str = ""
    """The directory that is made; "": the Device knows where its changes go."""
    token: str = ""
    """Stored with what is made, to know it by."""

    def make(self) -> None:
        """Raises UsageError, and what writing raises."""

    def take_back(self) -> None:
        """The mount did not come to be, and nobody uses the place any more."""


@dataclass(frozen=True)
class Changes:
    """Where the changes of one mount go."""

    name: str = ""
    """The directory, or the file of a config's own upper; "" for a Device without either."""
    size: int = 0
    """Bytes that the disk shall have, and its file system fill; 0: as they are."""
    place: Place = field(default_factory=Place)

    def check_outside(self, mountpoint: Path) -> None:
        """Raises UsageError if the changes of a mount were to be kept in the mounted tree."""
        place, tree = os.path.realpath(self.name), os.path.realpath(mountpoint)
        if self.name and f"{place}/".startswith(f"{tree.rstrip('/')}/"):
            raise UsageError(
                f"the changes cannot be kept in {self.name}, below the mount point",
                hint="name a directory elsewhere",
            )
