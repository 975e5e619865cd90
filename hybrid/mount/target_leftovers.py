"""TCMU disks in configfs that nobody owns: half made, half removed, or of servers that are gone.

An entry may belong to a state directory that we know nothing of. So it is left over only if no
process has its uio device open, which is the lock of whoever serves it, nothing uses its disk, and
it is not so young that a command may be at work on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from hybrid.block import configfs
from hybrid.block.names import PARAMETERS, Target
from hybrid.block.teardown import take_down
from hybrid.block.uio import Uio
from hybrid.core.bounded import run_bounded
from hybrid.errors import BusyError, HybridError, NotFoundError
from hybrid.mount.holders import is_claimed_in_kernel
from hybrid.mount.leftover import Leftover, is_young
from hybrid.mount.open_files import OpenFiles, look_at_processes
from hybrid.mount.processes import command_name, process_state

_STATE_ROOTS = (Path("/run/hybrid"),)
"""State directories that others may use besides the one of this command."""
_SCSI_DEVICES = Path("/sys/bus/scsi/devices")
_SWAPS = Path("/proc/swaps")
_LOOK_SECONDS = 3.0
_NETLINK_WAIT = "tcmu_netlink_event"
"""How the name of the kernel's function begins that waits for an answer (target_core_user.c)."""


def look_at_targets() -> list[Target]:
    """All TCMU disks of hybrid in configfs.

    Raises TimeoutExpiredError: a removal that hangs, of whichever program, holds up who looks.
    """
    names = run_bounded(
        "the look at configfs",
        lambda: [(target.id, target.wwn) for target in configfs.list_targets()],
        _LOOK_SECONDS,
    )
    return [Target(*name) for name in names]


def find_targets(
    targets: Collection[Target], known: Collection[str], files: OpenFiles
) -> Iterator[Leftover]:
    """Those of which no record tells. ``known``: ids of our own records."""
    for target in targets:
        if target.id in known or _is_recorded(target) or _is_served(target, files):
            continue
        if is_young(target.backstore) or is_young(target.fabric):
            continue
        disk = disk_of(target)
        use = find_use(disk, files) if disk else ""
        what = f"the TCMU disk {disk}" if disk else "a TCMU device without a disk"
        text = f"{what} ({target.backstore}) has neither server nor record"
        if use:
            remedy = f"end its use first: it is {use}; then `hybrid gc`"
            yield Leftover("target", target.id, text, remedy)
        else:
            remove = partial(_remove, target)
            yield Leftover("target", target.id, text, "`hybrid gc` removes it", remove)


def disk_of(target: Target) -> Path | None:
    """The block device of a target, by sysfs; None if it has none (yet, or any more)."""
    try:
        address = configfs.address(target)
    except NotFoundError:
        return None
    found = next((_SCSI_DEVICES / address / "block").glob("*"), None)
    return Path("/dev") / found.name if found else None


def find_use(disk: Path, files: OpenFiles) -> str:
    """Who uses a disk, as far as /proc and /sys tell; "" for nobody. The disk is not opened."""
    sysfs = Path("/sys/block") / disk.name
    number = _read(sysfs / "dev")
    if str(disk) in files.mounted or (number and number in files.mounted):
        return "mounted"
    with contextlib.suppress(OSError):
        for holder in (sysfs / "holders").iterdir():
            return f"used by {holder.name}"
    if f"{disk} " in _read(_SWAPS):
        return "used for swapping"
    pid = files.devices.get(str(disk))
    return f"open in {command_name(pid)} (pid {pid})" if pid else ""


def _is_recorded(target: Target) -> bool:
    """Whether another state directory that we can guess has a record of it."""
    return any((root / target.id).is_dir() for root in _STATE_ROOTS)


def _is_served(target: Target, files: OpenFiles) -> bool:
    try:
        return f"/dev/{configfs.find_uio(target)}" in files.devices
    except NotFoundError:
        return False


def _remove(target: Target) -> None:
    """Look once more, then remove it. Raises BusyError if it has come into use."""
    files = look_at_processes()
    disk = disk_of(target)
    use = find_use(disk, files) if disk else ""
    if use:
        raise BusyError(f"{disk} of {target.name} is {use}")
    if disk:
        check_unclaimed(disk)
    check_unserved(target)
    take_down(target, lambda: False)


def check_unclaimed(disk: Path) -> None:
    """Raise BusyError if a file system or driver has the disk, or TimeoutExpiredError."""
    if is_claimed_in_kernel(str(disk)):
        raise BusyError(f"{disk} is in use, perhaps in another mount namespace")


def check_unserved(target: Target) -> None:
    """Raise BusyError if the uio device is open: the kernel knows that of all containers."""
    try:
        Uio.open(configfs.find_uio(target)).close()
    except NotFoundError:
        return


def find_hanging() -> Iterator[Leftover]:
    """Processes that wait in the kernel for another TCMU program's answer, beyond any signal.

    Some program has switched such answers on for the whole module, and is gone (spec: tcmu 5). The
    way out makes the kernel's call end with EINTR, after which programs try again: hence the order.
    """
    try:
        found = run_bounded("the look at hanging processes", _find_hanging, _LOOK_SECONDS)
    except (HybridError, OSError):
        return
    for pid in found:
        yield Leftover(
            "hang",
            str(pid),
            f"{command_name(pid)} (pid {pid}) waits for the answer of a TCMU program that is gone",
            f"in {PARAMETERS}: write 1 to block_netlink, then 1 to reset_netlink, and 0 to "
            "block_netlink once it has gone on",
        )


def _find_hanging() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [
        pid
        for pid in sorted(pids)
        if process_state(pid) == "D" and _NETLINK_WAIT in _read(Path(f"/proc/{pid}/stack"))
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
