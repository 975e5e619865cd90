"""What fio reads: four loop devices, three of them over a FUSE file with a server behind it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.data import Data
from hybrid.fuse import DISK_NAME
from hybrid.fuse.loop import attach_loop

HYBRID = [sys.executable, "-m", "hybrid"]
_STOP_SECONDS = 3
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """One loop device. ``server`` is the process behind it, 0 for the raw file."""

    key: str
    title: str
    loop: Path
    server: int

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
        disk, pid = stack.enter_context(memory_server(data.disk))
        fronts.append(("b", "FUSE, in-memory Device", disk, pid))
        for key, algorithm in (("c", "lz4"), ("d", "zstd")):
            disk, pid = start_image(data.config(algorithm), environment)
            fronts.append((key, f"FUSE, 3 layers, {algorithm} 4K", disk, pid))
        targets = []
        for key, title, file, pid in fronts:
            loop = attach_loop(file)
            stack.callback(loop.close)
            targets.append(Target(key, title, loop.path, pid))
        yield targets


@contextlib.contextmanager
def hybrid_state() -> Iterator[dict[str, str]]:
    """Environment for hybrid: no configuration of this machine, a state directory of our own.

    At the end all mounts in it are taken away, those too whose start was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-") as name:
        config, records = Path(name) / "hybrid.json", Path(name) / "state"
        cache = {"cacheType": "file", "cacheDir": str(Path(name) / "cache")}
        config.write_text(json.dumps({"cacheConfig": cache}))
        records.mkdir(mode=0o700)
        environment = {
            **os.environ, "HYBRID_CONFIG": str(config), "HYBRID_STATE_DIR": str(records),
        }  # fmt: skip
        try:
            yield environment
        finally:
            for mount in json.loads(run_hybrid(["list", "--json"], environment)):
                run_hybrid(["umount", mount["id"]], environment)


@contextlib.contextmanager
def memory_server(
    disk: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, int]]:
    """Start ``bench.server``; gives the file and the process."""
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-") as directory:
        command = [sys.executable, "-m", "bench.server", str(disk), directory]
        # In a session of its own, as are all servers here: Ctrl-C is for the benchmark, which then
        # takes them down in order.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                sys.exit("bench: the in-memory server did not start")
            yield Path(directory) / DISK_NAME, process.pid
        finally:
            _stop(process, directory)


def _stop(process: subprocess.Popen[str], directory: str) -> None:
    """Take the FUSE mount away, which ends the server; by force if it was only starting."""
    unmount = ["fusermount3", "-q", "-u", "-z", directory]
    subprocess.run(unmount, check=False)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        subprocess.run(unmount, check=False)


def start_image(config: Path, environment: Mapping[str, str]) -> tuple[Path, int]:
    """``hybrid mount --no-mount`` of an image; the file, and the server's process."""
    shown = run_hybrid(["mount", "--mode", "fuse", "--no-mount", str(config)], environment)
    disk = shown.strip().splitlines()[-1]
    for mount in json.loads(run_hybrid(["list", "--json"], environment)):
        if mount["file"] == disk:
            return Path(disk), mount["pid"]
    sys.exit(f"bench: `hybrid list` does not show {disk}")


def run_hybrid(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run one command of hybrid; what it printed."""
    return subprocess.run(
        [*HYBRID, *arguments],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ).stdout
