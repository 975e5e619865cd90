"""Who holds a mount: processes with files, working directories or mappings in it, mounts on it.

Only links of /proc are read; the kernel answers them without asking the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hybrid.core.bounded import run_bounded
from hybrid.errors import TimeoutExpiredError
from hybrid.mount.mountinfo import mounts_below, read_mountinfo
from hybrid.mount.processes import command_name, process_state

_SCAN_SECONDS = 2.0
_OPEN_SECONDS = 5.0
_SHOWN = 5


def describe_holders(root: str) -> str:
    """``bash (pid 12), less (pid 15)``, or that nobody was found. Bounded in time."""
    names = [f"the mount {entry.mount_point}" for entry in mounts_below(read_mountinfo(), root)]
    names += [_name(pid) for pid in find_holders(root)]
    if names:
        return _some_of(names)
    blocked = [_name(pid) for pid in _find_blocked()]
    if blocked:
        # A process that hangs in open(2) has no link yet that would show where.
        return f"perhaps {_some_of(blocked)}, blocked in the kernel"
    return "no process that this user may look into (try as root)"


def _name(pid: int) -> str:
    return f"{command_name(pid)} (pid {pid})"


def _some_of(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def is_claimed_in_kernel(disk: str) -> bool:
    """Whether a file system or driver has a block device, in whatever mount namespace.

    Raises TimeoutExpiredError: a write-protected SCSI disk is asked for its state, and its server
    may be silent.
    """
    try:
        run_bounded(f"opening {disk}", lambda: _open_exclusively(disk), _OPEN_SECONDS)
    except OSError as error:
        # Other errors: it is gone, or nobody can have it.
        return error.errno == errno.EBUSY
    return False


def _open_exclusively(disk: str) -> None:
    os.close(os.open(disk, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))


def find_holders(root: str) -> list[int]:
    """Pids of processes that use something at or below ``root`` (an absolute path)."""
    found: list[int] = run_bounded("the look at /proc", lambda: _scan(root, _links), _SCAN_SECONDS)
    if found:
        return found
    # Second, since reading maps waits for the page faults of a process that hangs in the mount.
    with contextlib.suppress(TimeoutExpiredError):
        found = run_bounded("the look at /proc", lambda: _scan(root, _maps), _SCAN_SECONDS)
    return found


def _scan(root: str, places: Callable[[Path], Iterator[str]]) -> list[int]:
    prefix = root.rstrip("/") + "/"
    own = os.getppid()

    def holds(pid: int) -> bool:
        return any(f"{path}/".startswith(prefix) for path in places(Path(f"/proc/{pid}")))

    return [pid for pid in _all_pids() if pid != own and holds(pid)]


def _all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _find_blocked() -> list[int]:
    """Processes in uninterruptible sleep, kernel threads (which have no program) left out."""
    return [pid for pid in _all_pids() if process_state(pid) == "D" and _has_program(pid)]


def _has_program(pid: int) -> bool:
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


def _links(process: Path) -> Iterator[str]:
    for name in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield os.readlink(process / name)
    with contextlib.suppress(OSError):
        for name in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(process / "fd" / name)


def _maps(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            yield line.split(" ", 5)[-1].lstrip()
