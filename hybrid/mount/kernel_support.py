"""What this machine's kernel offers, and what rights this process has: looks at a few files only.

Nothing here starts a program or changes anything. Sources: proc(5), sysfs(5), user_namespaces(7),
capabilities(7), kmod's modules.dep and modules.builtin.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path

from hybrid.errors import PermissionNeededError, SystemSupportError

_ALL_IDS = ["0", "0", "4294967295"]
"""The map of user ids of the first user namespace, see user_namespaces(7)."""
_BUILT_IN_SIGNS = {
    "tcm_loop": "bus/tcm_loop_bus",
    "sd_mod": "bus/scsi/drivers/sd",
    "uio": "class/uio",
    "configfs": "kernel/config",
}
"""Below /sys: what is there if a module without parameters is built into the kernel."""


class Capability(IntEnum):
    """Numbers of capabilities(7)."""

    SYS_MODULE = 16
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    MKNOD = 27


class ModuleState(StrEnum):
    LOADED = "loaded"
    BUILT_IN = "built in"
    LOADABLE = "loadable"
    """There is a file of it for the running kernel."""
    MISSING = "missing"

    @property
    def present(self) -> bool:
        return self in (ModuleState.LOADED, ModuleState.BUILT_IN)


@dataclass(frozen=True)
class Machine:
    """Where the kernel tells about itself. Tests give places of their own."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    modules: Path = Path("/lib/modules")
    release: str = field(default_factory=lambda: os.uname().release)
    euid: int = field(default_factory=os.geteuid)

    def has(self, capability: Capability) -> bool:
        """Whether this process has an effective capability (in its user namespace)."""
        for line in _lines(self.proc / "self/status"):
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
        return False

    def is_first_user_namespace(self) -> bool:
        """Whether our root is the kernel's root. A kernel without such namespaces has no map."""
        lines = _lines(self.proc / "self/uid_map")
        return not lines or lines[0].split() == _ALL_IDS

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number of the kernel."""
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else (0, 0)


def module_state(machine: Machine, name: str) -> ModuleState:
    """Whether a module, named with underscores, is part of the running kernel or can be."""
    directory = machine.sys / "module" / name
    if (directory / "initstate").exists():
        # "coming" and "going" are for modprobe to wait for.
        live = _lines(directory / "initstate") == ["live"]
        return ModuleState.LOADED if live else ModuleState.LOADABLE
    sign = _BUILT_IN_SIGNS.get(name)
    if directory.exists() or (sign is not None and (machine.sys / sign).exists()):
        return ModuleState.BUILT_IN
    if _lists(machine.modules / machine.release / "modules.builtin", name):
        return ModuleState.BUILT_IN
    if _lists(machine.modules / machine.release / "modules.dep", name):
        return ModuleState.LOADABLE
    return ModuleState.MISSING


def check_may_load(machine: Machine, names: str) -> None:
    """Raise PermissionNeededError or SystemSupportError if no module can be loaded by us."""
    if _lines(machine.proc / "sys/kernel/modules_disabled") == ["1"]:
        raise SystemSupportError(
            f"{names} cannot be loaded: kernel.modules_disabled is set",
            hint=f"load it before that is set, or reboot: add {names} to /etc/modules-load.d",
        )
    if not machine.has(Capability.SYS_MODULE):
        raise PermissionNeededError(
            f"{names} is not loaded, and this process may not load modules",
            hint=f"outside of the container: modprobe {names}",
        )


def missing_module(machine: Machine, name: str, option: str) -> SystemSupportError:
    """The error for a module that the running kernel has not got. ``option`` is its CONFIG_*."""
    return SystemSupportError(
        f"the kernel {machine.release} has no {name}", hint=_where_to_get(machine, option)
    )


def _where_to_get(machine: Machine, option: str) -> str:
    release = machine.release
    if "microsoft" in release.lower():
        return f"the kernel of WSL lacks it: boot one of your own, with {option}"
    if "-cloud-" in release:
        architecture = release.rpartition("-")[2]
        return (
            f"Debian's kernel for clouds lacks it: install linux-image-{architecture} and boot that"
        )
    if (machine.modules / release).is_dir():
        return (
            "install the package with the rest of this kernel's modules (Ubuntu: "
            f"linux-modules-extra-{release}), or boot a kernel with {option}"
        )
    others = _names(machine.modules)
    if others:
        return f"its modules are not installed, only those of {', '.join(others)}: reboot"
    return (
        f"boot a kernel with {option}, such as Debian's linux-image-amd64; in a container: "
        "load the modules outside of it"
    )


def _lists(index: Path, name: str) -> bool:
    """Whether modules.dep or modules.builtin names the module: ``.../NAME.ko[.xz]`` first."""
    try:
        content = index.read_bytes()
    except OSError:
        return False
    # In file names, - and _ are the same.
    spelled = name.encode().replace(b"_", b"[-_]")
    return re.search(rb"^(?:[^:\n]*/)?" + spelled + rb"\.ko", content, re.MULTILINE) is not None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if path.is_dir())
    except OSError:
        return []
