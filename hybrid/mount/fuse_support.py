"""What mode fuse needs of this machine: /dev/fuse, fusermount3, loop devices.

Changes nothing, except that opening a device node may make the kernel load its module.
"""

from __future__ import annotations

import os
import shutil
from functools import partial

from hybrid.errors import HybridError, PermissionNeededError, SystemSupportError
from hybrid.mount.findings import Finding, Status, Verdict, examine
from hybrid.mount.kernel_support import Machine, ModuleState, module_state
from hybrid.mount.preflight import check_fuse, check_may_mount

_LOOP_VERSION = (5, 8)
"""The first kernel with LOOP_CONFIGURE, see loop(4)."""
FILESYSTEMS = ("ext4", "xfs", "erofs", "squashfs", "btrfs")


def examine_fuse(machine: Machine) -> tuple[list[Finding], Verdict]:
    """All checks, and whether mode fuse can be used, and for mounting as well."""
    device = examine("fuse", "/dev/fuse", partial(_check_device, machine))
    # Without these there is still --no-mount.
    rights = examine("fuse", "rights", partial(_check_rights, machine), status=Status.INFO)
    loop = examine("fuse", "loop devices", partial(_check_loop, machine), status=Status.WARNING)
    findings = [device, _find_fusermount(machine), rights, loop]
    if device.status is not Status.OK:
        return findings, Verdict(False, False, device.text)
    hindrance = next((found for found in (rights, loop) if found.status is not Status.OK), None)
    return findings, Verdict(True, hindrance is None, hindrance.text if hindrance else "")


def examine_filesystems(machine: Machine) -> Finding:
    """Which drivers the kernel has for what images hold; both modes need them to mount."""
    try:
        listed = (machine.proc / "filesystems").read_text().split()
    except OSError:
        listed = []
    states = {
        name: "available" if name in listed else module_state(machine, name).value
        for name in FILESYSTEMS
    }
    parts = [
        f"{', '.join(name for name in FILESYSTEMS if states[name] == state)} {state}"
        for state in dict.fromkeys(states.values())
    ]
    missing = [name for name in FILESYSTEMS if states[name] == ModuleState.MISSING]
    remedy = (
        f"images with {' or '.join(missing)} need a kernel with that, or --no-mount"
        if missing
        else ""
    )
    status = Status.WARNING if missing else Status.OK
    return Finding("common", "file systems", status, "; ".join(parts), remedy)


def _check_device(machine: Machine) -> str:
    check_fuse()
    return "can be opened"


def _check_rights(machine: Machine) -> str:
    check_may_mount()
    return "root: images can be mounted"


def _find_fusermount(machine: Machine) -> Finding:
    """``check_fuse`` insists on it where it is needed."""
    found = shutil.which("fusermount3")
    if found is not None:
        return Finding("fuse", "fusermount3", Status.OK, found)
    text = "missing: only root can use FUSE"
    return Finding("fuse", "fusermount3", Status.INFO, text, "install the package fuse3")


def _check_loop(machine: Machine) -> str:
    if machine.version < _LOOP_VERSION:
        wanted = ".".join(map(str, _LOOP_VERSION))
        raise SystemSupportError(
            f"the kernel {machine.release} is too old for loop devices as hybrid sets them up",
            hint=f"boot one from {wanted} on",
        )
    control = machine.dev / "loop-control"
    if machine.euid != 0:
        return "only root uses them"
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise PermissionNeededError(
            f"cannot open {control}: permission denied",
            hint="a container needs to be privileged",
        ) from error
    except OSError as error:
        raise _no_loop(machine, f"cannot open {control}: {error.strerror}") from error
    return f"{control} can be opened"


def _no_loop(machine: Machine, what: str) -> HybridError:
    state = module_state(machine, "loop")
    hint = "a container needs the device passed in, and the right to use it"
    if state is ModuleState.LOADABLE:
        hint = "load them: modprobe loop"
    elif state is ModuleState.MISSING:
        hint = "boot a kernel with CONFIG_BLK_DEV_LOOP"
    return SystemSupportError(f"no loop devices: {what}", hint=hint)
