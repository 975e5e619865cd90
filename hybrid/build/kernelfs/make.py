"""Empty file systems, made on a raw file by their own programs."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import trio

from hybrid.errors import SystemSupportError, UsageError

_PROGRAMS = {
    # -K, --nodiscard: the file is empty. One copy of metadata: digests tell of damage, and the
    # registry has another copy.
    "xfs": ("xfsprogs", "mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("btrfs-progs", "mkfs.btrfs", "-q", "-f", "-K", "-m", "single", "-d", "single"),
}
MADE = tuple(_PROGRAMS)
"""File systems that can be made here."""
_MOST_REASON = 200


async def make_file_system(fs: str, path: Path, size: int) -> None:
    """Make a sparse file of ``size`` bytes with an empty file system in it.

    Raises UsageError if it cannot have that size, SystemSupportError without the program, and
    OSError if the file cannot be made.
    """
    package, *command = _PROGRAMS[fs]
    with path.open("xb") as file:
        file.truncate(size)
    path_of_programs = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    environment = {**os.environ, "LC_ALL": "C", "PATH": path_of_programs}
    try:
        done = await trio.run_process(
            [*command, str(path)], env=environment, check=False, stdin=subprocess.DEVNULL,
            capture_stdout=True, capture_stderr=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SystemSupportError(
            f"{command[0]} is missing", hint=f"install the package {package}"
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").split("\n")
        # The first line has the reason; what follows may be all options of the program.
        lines = [line.strip() for line in said if line.strip()]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        # Not all of them say it.
        if os.strerror(errno.ENOSPC) in reason or not os.statvfs(path.parent).f_bavail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        raise UsageError(
            f"{command[0]} makes no file system of {size} bytes: {reason[:_MOST_REASON]}",
            hint="choose another --size",
        )
