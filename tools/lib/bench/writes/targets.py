"""What is written to: a raw file, and writable images in each mode, all on one file system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from layers import write_config, write_layer

from bench.images import hybrid_state, start_image
from bench.targets import Target
from hybrid.block import names
from hybrid.fuse.loop import attach_loop

DISK_SIZE = 320 << 20
_CHUNK = bytes(1 << 20)


@dataclass(frozen=True)
class Written:
    """A target, and its upper (None for the raw file)."""

    target: Target
    upper: Path | None

    def disk_use(self) -> int:
        """Bytes of the disk that the files of the upper take."""
        assert self.upper
        return sum(path.stat().st_blocks * 512 for path in self.upper.iterdir())

    def server_writes(self) -> int | None:
        """Bytes that the server has caused to be written to a disk. A tmpfs does not count."""
        try:
            lines = Path(f"/proc/{self.target.server}/io").read_text().splitlines()
        except OSError:
            return None
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


@contextlib.contextmanager
def images_to_write(directory: Path) -> Iterator[list[Written]]:
    """`hybrid mount --rw --no-mount` in each mode that the kernel has, with new uppers."""
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(hybrid_state())
        config = _empty_image(directory)
        file, pid = _start(config, environment, "fuse", directory / "fuse")
        loop = attach_loop(file, writable=True)
        stack.callback(loop.close)
        found = [Written(Target("b", "FUSE + loop", loop.path, pid), directory / "fuse")]
        if names.ROOT.is_dir():
            disk, pid = _start(config, environment, "tcmu", directory / "tcmu")
            found.append(Written(Target("c", "TCMU", disk, pid), directory / "tcmu"))
        yield found


@contextlib.contextmanager
def raw_file(directory: Path) -> Iterator[Written]:
    """A loop device over a file whose space is all taken already: the best that there is."""
    path = directory / "raw"
    with path.open("wb") as file:
        for _ in range(DISK_SIZE // len(_CHUNK)):
            file.write(_CHUNK)
        file.flush()
        os.fsync(file.fileno())
    loop = attach_loop(path, writable=True)
    try:
        yield Written(Target("a", "raw file + loop", loop.path), None)
    finally:
        loop.close()


def _empty_image(directory: Path) -> Path:
    layer = write_layer(directory / "empty.tar", DISK_SIZE, [])
    write_config(directory / "empty.v1.json", [layer])
    return directory / "empty.v1.json"


def _start(
    config: Path, environment: Mapping[str, str], mode: str, upper: Path
) -> tuple[Path, int]:
    return start_image(config, environment, mode, "--rw", "--upper", str(upper))
