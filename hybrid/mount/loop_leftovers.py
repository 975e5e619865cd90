"""Loop devices over files of servers that are gone, with no record that tells of them.

hybrid's own loop devices have autoclear set: one that is left is still used by somebody, perhaps in
another mount namespace. To clear it then takes nothing away, it only goes with its last user.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hybrid.core.bounded import run_bounded
from hybrid.errors import BusyError, TimeoutExpiredError
from hybrid.fuse import DISK_NAME
from hybrid.fuse.loop import backing_file, clear_loop
from hybrid.mount.leftover import Leftover, elsewhere
from hybrid.mount.mountinfo import MountEntry
from hybrid.mount.open_files import OpenFiles
from hybrid.mount.processes import wait_until

_SYSFS_BLOCK = Path("/sys/block")
_DISK = re.compile(r"(/.*/[0-9a-f]{8})/fuse/disk")
_DETACHED = f"/{DISK_NAME}"
"""All that the kernel still tells of a file whose FUSE mount was detached."""
_LOOP_GET_STATUS64 = 0x4C05
_STATUS = struct.Struct("=56x 64s 112x")
"""struct loop_info64: lo_file_name, what the device was set up with, cut to 63 bytes. loop(4)."""
_ASK_SECONDS = 1.0
_CLEAR_SECONDS = 1.0


def list_loops() -> dict[Path, str]:
    """Loop devices in use and the files under them, also where that is detached."""
    found = {}
    for directory in sorted(_SYSFS_BLOCK.glob("loop*")):
        loop = Path("/dev") / directory.name
        file = _plain(backing_file(loop))
        if file:
            found[loop] = _name_at_setup(loop) or file if file == _DETACHED else file
    return found


def judge_loops(
    loops: Mapping[Path, str],
    known: Collection[str],
    entries: Sequence[MountEntry],
    files: OpenFiles,
) -> Iterator[Leftover]:
    """``known``: directories of mounts whose records tell of their loop devices."""
    points = {entry.mount_point for entry in entries}
    for loop, file in loops.items():
        match = _DISK.fullmatch(file)
        if match is None or match[1] in known or match[1] in files.writers:
            continue
        text = f"{loop} reads {file}, which no server of hybrid serves any more"
        places = [entry.mount_point for entry in entries if entry.source == str(loop)]
        if places:
            yield Leftover("loop", str(loop), text, f"umount {places[0]}: {loop} goes with it")
        elif f"{match[1]}/fuse" in points:
            yield Leftover("loop", str(loop), text, elsewhere(Path(match[1])))
        else:
            yield _removable(loop, text)


def _removable(loop: Path, text: str) -> Leftover:
    file = backing_file(loop)

    def remove() -> None:
        if backing_file(loop) != file:
            return  # It is gone, or another one by now.
        clear_loop(loop)
        if not wait_until(lambda: backing_file(loop) != file, _CLEAR_SECONDS):
            raise BusyError(f"{loop} is still in use", hint="it goes with its last user")

    return Leftover("loop", str(loop), text, "`hybrid gc` removes it", remove)


def _plain(file: str) -> str:
    return file.removesuffix(" (deleted)")


def _name_at_setup(loop: Path) -> str:
    """The file's name as whoever set the device up gave it; "" if the kernel does not tell."""
    try:
        name = run_bounded(f"asking {loop}", lambda: _get_name(loop), _ASK_SECONDS)
    except (OSError, TimeoutExpiredError):
        return ""
    return str(name)


def _get_name(loop: Path) -> str:
    descriptor = os.open(loop, os.O_RDONLY | os.O_CLOEXEC)
    status = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_STATUS.size))
    (name,) = _STATUS.unpack(status)
    return os.fsdecode(name.rstrip(b"\0"))
