"""What both modes live with: versions, state directory, cache. For ``hybrid doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid import __version__
from hybrid.config import GlobalConfig
from hybrid.core.bounded import run_bounded
from hybrid.core.cachefile import check_private
from hybrid.core.cacheformat import is_cache_file
from hybrid.errors import HybridError, PermissionNeededError
from hybrid.mount.findings import Finding, Status
from hybrid.mount.kernel_support import Machine
from hybrid.mount.state import read_records, state_root

_DISTRIBUTION = "hybrid-overlaybd"
_UDEV_CONTROL = Path("/run/udev/control")
_LOOK_SECONDS = 3.0
_MIB = 1 << 20


def find_versions(machine: Machine) -> Iterator[Finding]:
    """For bug reports."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown system")
    except OSError:
        system = "unknown system"
    kernel = f"Linux {machine.release} {platform.machine()}, {system}"
    yield Finding("common", "kernel", Status.INFO, kernel)
    packages = ", ".join(f"{name} {version}" for name, version in _packages())
    python = f"hybrid {__version__}, Python {platform.python_version()}, {packages}"
    yield Finding("common", "versions", Status.INFO, python)


def _packages() -> Iterator[tuple[str, str]]:
    """The packages that hybrid needs, as they are installed."""
    try:
        needed = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        name = requirement.split(">=")[0].split(";")[0].strip()
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "missing"


def find_udev() -> Finding:
    """hybrid listens to the kernel itself, so this is only told."""
    text = "is running" if _UDEV_CONTROL.exists() else "is not running (hybrid does not need it)"
    return Finding("common", "udevd", Status.INFO, text)


def examine_state() -> str:
    """The state directory and how many mounts it has. Raises PermissionNeededError."""
    root = state_root()
    count = len(read_records())
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionNeededError(
            f"cannot write to {existing}", hint="name another directory in HYBRID_STATE_DIR"
        )
    if existing != root:
        return f"{root} will be made by the first mount"
    return f"{root}, {count} mount{'s' if count != 1 else ''}"


def examine_cache(config: GlobalConfig) -> Finding:
    """Directory, rights and space. Mounting works without a cache, only slower: a warning."""
    directory = config.cache_dir
    try:
        found = run_bounded(f"looking at {directory}", lambda: _look(directory), _LOOK_SECONDS)
    except HybridError as error:
        return _cache(Status.WARNING, error.message, "name another one in cacheConfig.cacheDir")
    except OSError as error:
        text = f"{directory} cannot be used: {error.strerror}"
        return _cache(Status.WARNING, text, "name another one in cacheConfig.cacheDir")
    return judge_cache(directory, config.cache_limit_bytes, found)


def judge_cache(directory: Path, limit_bytes: int, found: dict[str, Any]) -> Finding:
    """PURE. ``found`` is what ``_look`` gives."""
    if found["problem"]:
        text = f"{directory}: {found['problem']}"
        return _cache(Status.WARNING, text, "mend that, or reads are not cached")
    if not limit_bytes:
        return _cache(Status.INFO, f"{directory}: its limit is 0, nothing is kept")
    used, free = found["used"], found["free"]
    text = (
        f"{directory}: {used // _MIB} of {limit_bytes // _MIB} MiB used, "
        f"{free // _MIB} MiB free on its disk"
    )
    if used + free < limit_bytes:
        remedy = "less than it may take: make space, or lower cacheConfig.cacheSizeGB"
        return _cache(Status.WARNING, text, remedy)
    return _cache(Status.OK, text)


def _cache(status: Status, text: str, remedy: str = "") -> Finding:
    return Finding("common", "cache", status, text, remedy)


def _look(directory: Path) -> dict[str, Any]:
    """``problem`` ("" for none), ``used`` and ``free`` (bytes). Runs in a child: it may hang."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    space = os.statvfs(existing)
    problem = ""
    if not existing.is_dir():
        problem = f"{existing} is no directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"cannot write to {existing}"
    elif existing == directory:
        try:
            check_private(directory)
        except PermissionError as error:
            problem = error.strerror or "it is not private"
    return {
        "problem": problem,
        "used": 0 if problem else _used(directory),
        "free": space.f_bavail * space.f_frsize,
    }


def _used(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    with os.scandir(directory) as entries:
        return sum(
            entry.stat(follow_symlinks=False).st_blocks * 512
            for entry in entries
            if is_cache_file(entry.name)
        )
