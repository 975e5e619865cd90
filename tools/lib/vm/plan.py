"""What one run asks of the guest's scripts, as shell text that they read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FRESH = tuple(Path(path) for path in ("/tmp", "/run", "/var/tmp", "/dev"))
"""Where the guest does not see the host's files (/dev/shm is in /dev)."""
_PASSED_ON = ("PATH", "HOME", "LANG")


@dataclass(frozen=True)
class Plan:
    """One run. All directories are absolute, without symbolic links."""

    modules: Path
    """The directory of the host that becomes /lib/modules."""
    kept: tuple[Path, ...]
    """Directories in a fresh place that are shown all the same, their changes thrown away."""
    shared: tuple[Path, ...]
    """Directories whose changes survive; the 9p tag is out and the position: out0, out1..."""
    mark: bytes
    """What the streams end with; printable."""
    scratch: bool
    """Whether there is a disk to be mounted at /scratch."""
    load: bool
    """Whether to load the modules that the suite needs."""
    limit: int
    """Seconds after which the guest ends by itself, should nobody be left to end it."""

    def settings(self) -> bytes:
        """Shell text for both scripts: variables, and functions that call the scripts' own."""
        return _encode(
            f"modules={_quote(self.modules)}",
            f"mark={shlex.quote(self.mark.decode())}",
            f"scratch={int(self.scratch)}",
            f"load={int(self.load)}",
            f"limit={self.limit}",
            *_function("keep_all", "keep ", self.kept),
            *_function("share_all", "share out", self.shared),
        )


def command_script(command: str, directory: Path, environment: Mapping[str, str]) -> bytes:
    """Shell text that runs the command in the directory, with this environment and no other."""
    words = [f"{name}={value}" for name, value in environment.items()]
    return _encode(
        f"cd -- {_quote(directory)} || exit 125",
        f"exec env -i {shlex.join(words)} /bin/bash -c {shlex.quote(command)}",
    )


def kept_directories(wanted: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the directories that a fresh one would hide; none that lies in another of them."""
    kept: list[Path] = []
    for path in sorted(wanted):
        hidden = any(fresh in path.parents for fresh in _FRESH) and path != Path("/dev/shm")
        if hidden and not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(kept)


def passed_on(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The variables that the command sees: a few, and those asked for, as far as they are set."""
    return {name: environment[name] for name in (*_PASSED_ON, *names) if name in environment}


def _function(name: str, call: str, paths: Sequence[Path]) -> list[str]:
    calls = [f"{call}{number} {_quote(path)}" for number, path in enumerate(paths)]
    # A function without a command is a syntax error.
    return [f"{name}() {{", ":", *calls, "}"]


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _encode(*lines: str) -> bytes:
    return os.fsencode("\n".join(lines) + "\n")
