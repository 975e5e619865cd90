"""What mode tcmu needs of this machine: looked at, and made ready where that is possible.

    tcmu_obstacle   for ``--mode auto``: why it cannot be used, if it cannot
    prepare_tcmu    for ``--mode tcmu``: load modules and mount configfs, or say what is missing
    examine_tcmu    for ``hybrid doctor``: every check as a finding; changes nothing

Where all is in place, this costs a few looks at /proc and /sys (spec: tcmu 1 and 2).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hybrid.core.bounded import run_bounded
from hybrid.errors import (
    HybridError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
)
from hybrid.mount.findings import Finding, Verdict, examine
from hybrid.mount.kernel_support import (
    Capability,
    Machine,
    ModuleState,
    check_may_load,
    missing_module,
    module_state,
)
from hybrid.mount.mountinfo import parse_mountinfo, top_mount
from hybrid.mount.syscalls import mount

_MODULES = {
    "target_core_user": "CONFIG_TCM_USER2",
    "tcm_loop": "CONFIG_LOOPBACK_TARGET",
    "sd_mod": "CONFIG_BLK_DEV_SD",
    "uio": "CONFIG_UIO",
}
_LOAD_SECONDS = 20.0
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
"""Where programs of the system are, also for a root whose PATH is that of an ordinary user."""

Check = Callable[[Machine], str]
"""Returns what is fine, in a few words; raises a HybridError with what is not, and the remedy."""


def tcmu_obstacle() -> HybridError | None:
    """Why mode tcmu cannot be used, or None: then it is ready. Loads modules where it may."""
    try:
        prepare_tcmu()
    except HybridError as error:
        return error
    return None


def prepare_tcmu(machine: Machine | None = None) -> None:
    """Make mode tcmu ready: load the kernel's modules and mount configfs where that is needed.

    Raises PermissionNeededError, SystemSupportError, or TimeoutExpiredError for a modprobe that
    does not end.
    """
    machine = machine or Machine()
    for _, check in _checks():
        check(machine)
    wanted = [name for name in _MODULES if not module_state(machine, name).present]
    if wanted:
        _load(wanted)
    _mount_configfs(machine)
    for path in (_target(machine), machine.sys / "class/uio"):
        if not path.is_dir():
            raise SystemSupportError(
                f"the kernel has {' and '.join(_MODULES)}, but there is no {path}",
                hint="`hybrid doctor` says more; dmesg may too",
            )


def examine_tcmu(machine: Machine) -> tuple[list[Finding], Verdict]:
    """All checks, and whether mode tcmu could be used. Changes nothing."""
    findings = [examine("tcmu", name, partial(check, machine)) for name, check in _checks()]
    problem = next((found for found in findings if found.status == "problem"), None)
    return findings, Verdict(problem is None, problem is None, problem.text if problem else "")


def _checks() -> Iterator[tuple[str, Check]]:
    """In the order in which somebody would want to mend things."""
    yield "rights", _check_rights
    for name in _MODULES:
        yield f"module {name}", partial(_check_module, name=name)
    yield "configfs", _check_configfs
    yield "device nodes", _check_nodes


def _check_rights(machine: Machine) -> str:
    if machine.euid != 0:
        raise PermissionNeededError("mode tcmu needs root", hint="use sudo")
    if not machine.has(Capability.SYS_ADMIN):
        raise PermissionNeededError(
            "mode tcmu needs CAP_SYS_ADMIN, which this root has not got",
            hint="a container needs to be privileged",
        )
    if not machine.is_first_user_namespace():
        raise PermissionNeededError(
            "mode tcmu needs the root of the machine, not of a user namespace",
            hint="a container needs to run with rights of the host's root",
        )
    return "root, with CAP_SYS_ADMIN"


def _check_module(machine: Machine, name: str) -> str:
    state = module_state(machine, name)
    if state is ModuleState.MISSING:
        raise missing_module(machine, name, _MODULES[name])
    if state.present:
        return state.value
    if machine.euid == 0:  # to others it says nothing
        check_may_load(machine, name)
        _modprobe()
    return "not loaded yet, hybrid does it when it is needed"


def _check_configfs(machine: Machine) -> str:
    target = _target(machine)
    if not target.is_dir():
        if module_state(machine, "configfs") is ModuleState.MISSING:
            raise missing_module(machine, "configfs", "CONFIG_CONFIGFS_FS")
        return f"{target} is not there yet, hybrid mounts and loads what it needs"
    if machine.euid == 0 and not os.access(target, os.W_OK):
        raise PermissionNeededError(
            f"{target} cannot be written to",
            hint="mount configfs read-write; a container needs to be privileged",
        )
    return str(target)


def _check_nodes(machine: Machine) -> str:
    if machine.has(Capability.MKNOD):
        return f"hybrid can make what is missing in {machine.dev}"
    entries = parse_mountinfo(_read(machine.proc / "self/mountinfo"))
    entry = top_mount(entries, str(machine.dev))
    if entry and entry.fstype == "devtmpfs":
        return f"the kernel makes them in {machine.dev}"
    raise PermissionNeededError(
        f"{machine.dev} is no devtmpfs, and this process may not make device nodes",
        hint="a container needs CAP_MKNOD, or the machine's /dev",
    )


def _target(machine: Machine) -> Path:
    return machine.sys / "kernel/config/target"


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def _modprobe() -> str:
    """The program. Raises SystemSupportError."""
    found = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if found is None:
        raise SystemSupportError("the program modprobe is missing", hint="install the package kmod")
    return found


def _load(names: list[str]) -> None:
    command = [_modprobe(), "--all", *names]

    def run() -> list[object]:
        # Of its own descriptors this child has none that anybody waits for.
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [done.returncode, done.stderr]

    called = f"modprobe {' '.join(names)}"
    try:
        code, errors = run_bounded(called, run, _LOAD_SECONDS)
    except TimeoutExpiredError as error:
        raise TimeoutExpiredError(error.message, hint="dmesg may say why") from error
    if code == 0:
        return
    reason = next((line for line in errors.splitlines() if line.strip()), f"exit code {code}")
    raise SystemSupportError(f"{called} failed: {reason}", hint="dmesg may say more")


def _mount_configfs(machine: Machine) -> None:
    """Whoever mounted it before (systemd does) is as good."""
    if _target(machine).is_dir():
        return
    place = machine.sys / "kernel/config"
    try:
        mount(Path("configfs"), place, "configfs", 0, "")
    except OSError as error:
        if error.errno == errno.EBUSY:
            return
        raise SystemSupportError(
            f"cannot mount configfs on {place}: {error.strerror}",
            hint="a container needs to be privileged",
        ) from error
