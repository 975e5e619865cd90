"""Debian's kernel for the guest: fetched by apt, which checks its signature, and kept in a cache.

    CACHE/kernel-1/vmlinux              the kernel, not compressed
    CACHE/kernel-1/lib/modules/RELEASE  its modules, not compressed

A kernel that starts compressed would expand itself under emulation, which takes seconds; so would
modules. Take the directory away to have a newer kernel fetched.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vm.apt import fetch_kernel
from vm.errors import VmError
from vm.package import uncompressed_kernel, unpack
from vm.programs import run, say

_LAYOUT = "kernel-1"
"""Changes with what is in the directory, so that an old one is not taken for a new one."""
_DEPMOD_SECONDS = 300


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to start."""

    image: Path
    modules: Path
    """lib/modules/RELEASE."""


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where kernels are kept (XDG Base Directory Specification)."""
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "hybrid-vm"


def ready_kernel(cache: Path) -> Kernel:
    """The kernel in the cache, fetched first if there is none. Raises VmError, OSError."""
    directory = cache / _LAYOUT
    if not directory.is_dir():
        machine = platform.machine()
        if machine != "x86_64":
            raise VmError(f"the guest runs this machine's programs: it needs x86_64, not {machine}")
        cache.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(cache / "lock"):
            # Another one may have made it in the meantime.
            if not directory.is_dir():
                _make(directory)
    kernel = Kernel(directory / "vmlinux", next(directory.glob("lib/modules/*"), directory))
    if kernel.modules == directory or not kernel.image.exists():
        raise VmError(f"parts are missing: remove {directory} to have the kernel fetched again")
    return kernel


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(directory: Path) -> None:
    """Make a complete directory, or none. Under the lock."""
    for left_behind in directory.parent.glob("new-*"):
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(prefix="new-", dir=directory.parent) as name:
        say("fetching Debian's kernel (100 MB, once)")
        package = fetch_kernel(Path(name))
        say("unpacking it (0.3 GB)")
        made = Path(name) / "made"
        compressed = unpack(package, made)
        (made / "vmlinux").write_bytes(uncompressed_kernel(compressed))
        release = next((made / "lib/modules").iterdir()).name
        run(["depmod", "-b", str(made), release], _DEPMOD_SECONDS)
        made.rename(directory)
