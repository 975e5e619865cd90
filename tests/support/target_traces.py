"""What TCMU disks leave in the kernel, and how to get rid of it, without the code under test."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/kernel/config/target")
_UIO = Path("/sys/class/uio")
_SECONDS = 20.0


def traces() -> set[str]:
    """Everything of any TCMU disk in configfs and among the uio devices.

    The directory ``loopback`` itself is one too: while it is there, its module cannot be unloaded.
    """
    hosts = [path for path in _directories(ROOT / "core") if path.name.startswith("user_")]
    found = [*hosts, *(path for host in hosts for path in _directories(host))]
    found += [path for path in _directories(ROOT) if path.name == "loopback"]
    found += [path for path in _directories(ROOT / "loopback") if path.name.startswith("naa.")]
    return {str(path.relative_to(ROOT)) for path in found} | _uio_names()


def _directories(parent: Path) -> list[Path]:
    """It may vanish at any time, unlike what Path.glob can cope with."""
    try:
        return [Path(entry.path) for entry in os.scandir(parent) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _uio_names() -> set[str]:
    names = set()
    for path in _UIO.glob("uio*/name"):
        with contextlib.suppress(OSError):
            names.add(f"{path.parent.name} {path.read_text().strip()}")
    return names


def remove_by_force(left: set[str]) -> None:
    """Remove disks whose servers are dead, given as ``traces`` has them."""
    backstores = [ROOT / name for name in left if name.count("/") == 2]
    fabrics = [ROOT / name for name in left if name.startswith("loopback/")]
    pid = os.fork()
    if pid == 0:
        for fabric in fabrics:
            _remove_fabric(fabric)
        for backstore in backstores:
            _try(backstore.rmdir)
            _try(backstore.parent.rmdir)
        _try((ROOT / "loopback").rmdir)
        os._exit(0)
    deadline = time.monotonic() + _SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, f"cannot remove {left}"
        for backstore in backstores:
            for name, value in (("block_dev", "0"), ("reset_ring", "2")):
                with contextlib.suppress(OSError):
                    (backstore / "action" / name).write_text(value)
        time.sleep(0.1)


def _remove_fabric(fabric: Path) -> None:
    lun = fabric / "tpgt_1/lun/lun_0"
    for link in lun.glob("*"):
        if link.is_symlink():
            _try(link.unlink)
    for path in (lun, fabric / "tpgt_1", fabric):
        _try(path.rmdir)


def _try(work: object) -> None:
    assert callable(work)
    with contextlib.suppress(OSError):
        work()
