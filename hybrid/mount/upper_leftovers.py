"""Directories for changes of mounts that never came to be: their command was killed (kill -9).

Only those in the data directory, whose names nobody has chosen. Removed are the ones that were not
finished, which have no manifest, and hold nothing. All that could be of use to anybody is told of
at most.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hybrid.core.upper_directory import exclusive
from hybrid.core.upper_manifest import MANIFEST, holds_nothing, read_manifest
from hybrid.errors import BusyError, HybridError, NotFoundError
from hybrid.mount.leftover import Leftover, is_young, removal_errors
from hybrid.mount.listing import MountStatus
from hybrid.mount.upper_place import UPPER_NAME, uppers_root

_REMEDY = "remove the directory if you do not need it"


def find_uppers(mounts: Sequence[MountStatus]) -> Iterator[Leftover]:
    """What is left in the data directory of this user, apart from what these mounts use."""
    used = {mount.record.upper for mount in mounts if mount.record.ready or mount.state != "dead"}
    try:
        directories = sorted(uppers_root().iterdir())
    except (OSError, RuntimeError):
        return  # Nothing was ever kept there, or this user has no home.
    for directory in directories:
        if UPPER_NAME.fullmatch(directory.name) and str(directory) not in used:
            yield from _judge(directory)


def _judge(directory: Path) -> Iterator[Leftover]:
    try:
        if not _is_as_made(directory) or is_young(directory):
            return
        is_finished, is_unwritten = _look(directory)
        if is_finished and not is_unwritten:
            return  # As nearly all of them; only of the others it matters who uses them.
        with exclusive(directory):
            is_finished, is_unwritten = _look(directory)
    except (HybridError, OSError):
        return  # It is in use, or gone, or none of this user's.
    if not is_finished and is_unwritten:
        text = f"{directory} is the beginning of an upper that was never made"
        yield Leftover("upper", str(directory), text, "`hybrid gc` removes it", _remover(directory))
    elif not is_finished:
        text = f"{directory} has no {MANIFEST}, but there is something in it"
        yield Leftover("upper", str(directory), text, _REMEDY)
    elif is_unwritten:
        text = f"nothing was ever written to {directory}{_made_over(directory)}"
        yield Leftover("upper", str(directory), text, _REMEDY)


def _is_as_made(directory: Path) -> bool:
    """Raises OSError."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700


def _look(directory: Path) -> tuple[bool, bool]:
    """Whether it has a manifest, and whether nothing was ever written to it. Raises OSError."""
    return (directory / MANIFEST).exists(), holds_nothing(directory)


def _made_over(directory: Path) -> str:
    try:
        return f", the upper of a mount of {read_manifest(directory).image}"
    except HybridError:
        return ""


def _remover(directory: Path) -> Callable[[], None]:
    def remove() -> None:
        # Gone already is fine.
        with suppress(NotFoundError), removal_errors(directory), exclusive(directory):
            # A mount may have begun to use it meanwhile.
            if _look(directory) != (False, True):
                raise BusyError(f"{directory} is in use after all")
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()

    return remove
