"""What fio reads: four loop devices, three of them over a FUSE file with a server behind it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.data import Data
from bench.fronts import fuse_file
from bench.images import hybrid_state, start_image
from hybrid.fuse.loop import attach_loop

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """One block device. ``server`` is the process behind it, 0 for none."""

    key: str
    title: str
    device: Path
    server: int = 0
    only: str = ""
    """Key of the one workload that it is read with; "" for all."""

    def cpu_seconds(self) -> float:
        """CPU time that the server has used so far, user and system."""
        if not self.server:
            return 0.0
        # The name, in parentheses, may hold anything: count from behind it.
        stat = Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS_PER_SECOND

    def peak_memory(self) -> int:
        """Bytes of the largest resident size so far (VmHWM)."""
        if not self.server:
            return 0
        for line in Path(f"/proc/{self.server}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ValueError(f"no VmHWM for process {self.server}")


@contextlib.contextmanager
def all_targets(data: Data) -> Iterator[list[Target]]:
    """The four of them, ready to be read; all gone at the end."""
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(hybrid_state())
        fronts = [("a", f"raw file on {data.where}", data.disk, 0)]
        disk, pid = stack.enter_context(fuse_file(f"memory:{data.disk}"))
        fronts.append(("b", "FUSE, in-memory Device", disk, pid))
        for key, algorithm in (("c", "lz4"), ("d", "zstd")):
            disk, pid = start_image(data.config(algorithm), environment, "fuse")
            fronts.append((key, f"FUSE, 3 layers, {algorithm} 4K", disk, pid))
        targets = []
        for key, title, file, pid in fronts:
            loop = attach_loop(file)
            stack.callback(loop.close)
            targets.append(Target(key, title, loop.path, pid))
        yield targets
