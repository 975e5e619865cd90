"""The command line of the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "qemu-system-x86_64"
_CPUS = 2
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet",
    # A guest that is lost ends, thanks to -no-reboot, instead of hanging or starting again.
    "panic=-1 oops=panic",
    # What only costs time under emulation. The watchdogs would take a busy host for a hung guest.
    "nokaslr mitigations=off nowatchdog audit=0 apparmor=0 cryptomgr.notests",
    "random.trust_cpu=on no_timer_check tsc=reliable",
)


@dataclass(frozen=True)
class Machine:
    """A guest to be started. Files are given as paths that qemu can open."""

    kernel: Path
    initrd: str
    memory: int
    """MiB."""
    console: str
    """Where the kernel's messages go."""
    ports: tuple[str, str]
    """Where the command's stdout and stderr go: /dev/vport0p1 and /dev/vport0p2 in the guest."""
    shared: tuple[Path, ...]
    """Directories of the host to be written to; their 9p tags are out0, out1..."""
    scratch: str
    """A raw disk, /dev/vda in the guest; "" for none."""


def command_line(machine: Machine) -> list[str]:
    """What to execute."""
    words = [PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    # Without KVM: most of the machines that this runs on are guests themselves.
    words += ["-accel", "tcg,thread=multi,tb-size=256", "-M", "q35", "-cpu", "max"]
    words += ["-smp", str(_CPUS), "-m", str(machine.memory)]
    words += ["-kernel", _escaped(machine.kernel), "-initrd", machine.initrd]
    words += ["-append", " ".join(_KERNEL_ARGUMENTS), "-serial", f"file:{machine.console}"]
    words += _port_words(machine.ports)
    words += ["-virtfs", f"{_share('root', Path('/'))},readonly=on"]
    for number, path in enumerate(machine.shared):
        words += ["-virtfs", _share(f"out{number}", path)]
    if machine.scratch:
        words += ["-drive", f"file={machine.scratch},format=raw,if=virtio,cache=unsafe,"
                  "discard=unmap,file.locking=off"]  # fmt: skip
    return words


def _port_words(ports: Sequence[str]) -> list[str]:
    words = ["-device", "virtio-serial-pci"]
    for number, path in enumerate(ports, 1):
        words += ["-chardev", f"file,id=port{number},path={path}"]
        words += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
    return words


def _share(tag: str, path: Path) -> str:
    return f"local,path={_escaped(path)},mount_tag={tag},security_model=none,multidevs=remap"


def _escaped(path: Path) -> str:
    """A comma would begin the next setting; two stand for one."""
    return str(path).replace(",", ",,")
