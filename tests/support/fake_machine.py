"""A machine made of files: the /proc, /sys, /dev and /lib/modules that a kernel would show."""

from __future__ import annotations

from pathlib import Path

from hybrid.mount.kernel_support import Machine

ALL_CAPABILITIES = (1 << 41) - 1
TARGET_MODULES = ("target_core_user", "tcm_loop", "sd_mod", "uio")
RELEASE = "6.1.0-25-amd64"


class FakeMachine:
    """At first a root with all rights, and a kernel without anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.release = RELEASE
        self.euid = 0
        for name in ("proc/self", "proc/sys/kernel", "sys/module", "dev"):
            (root / name).mkdir(parents=True)
        self.capabilities(ALL_CAPABILITIES)
        self.write("proc/self/uid_map", "         0          0 4294967295\n")
        self.write("proc/sys/kernel/modules_disabled", "0\n")
        self.write("proc/self/mountinfo", "")

    @property
    def machine(self) -> Machine:
        places = [self.root / name for name in ("proc", "sys", "dev", "lib/modules")]
        return Machine(*places, release=self.release, euid=self.euid)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def capabilities(self, mask: int) -> None:
        self.write("proc/self/status", f"Name:\tpython\nCapEff:\t{mask:016x}\nSeccomp:\t0\n")

    def without(self, capability: int) -> None:
        self.capabilities(ALL_CAPABILITIES & ~(1 << capability))

    def load(self, *modules: str) -> None:
        """Loadable modules that are loaded, with the directories that come with them."""
        for module in modules:
            self.write(f"sys/module/{module}/initstate", "live\n")
            if module == "uio":
                (self.root / "sys/class/uio").mkdir(parents=True)

    def build_in(self, *signs: str) -> None:
        """What a module leaves below /sys if it is part of the kernel."""
        for sign in signs:
            (self.root / "sys" / sign).mkdir(parents=True)

    def install(self, *files: str, index: str = "modules.dep") -> None:
        """Files of modules for the running kernel."""
        lines = [f"kernel/drivers/x/{file}:" for file in ("other.ko", *files)]
        text = "\n".join(lines if index == "modules.dep" else [line[:-1] for line in lines])
        self.write(f"lib/modules/{self.release}/{index}", f"{text}\n")

    def mount_configfs(self) -> None:
        (self.root / "sys/kernel/config/target").mkdir(parents=True)
