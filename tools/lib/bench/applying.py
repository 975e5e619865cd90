"""tools/bench --apply: tar layers applied to ext4, against `tar x` into the kernel's ext4.

Three archives: 20,000 small files, three big ones, and a tree of this machine. CPU seconds of one
process, medians; scratch files and archives are on tmpfs, so that no disk is measured.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_SIZE = 4 << 30
_MB = 10**6
_TREES = ("usr/share/doc", "usr/share/perl5", "usr/lib/python3", "usr/lib/python3.11", "usr/lib")
_TREE_LIMIT = 300 * _MB
_SHARED_MEMORY = Path("/dev/shm")

Row = dict[str, Any]


def measure_applying(rounds: int) -> list[Row]:
    """One row for each archive."""
    with TemporaryDirectory(prefix="hybrid-bench-", dir=_SHARED_MEMORY) as name:
        directory = Path(name)
        return [_measure(title, path, rounds) for title, path in _archives(directory)]


def text_of(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "MB/s of source tar, for each CPU second; peak: memory of the process; MB: 10^6 bytes",
        "",
        f"{'archive':28}{'MB':>6}{'entries':>9}{'parse':>9}{'apply':>9}{'compare':>9}"
        f"{'total':>9}{'peak':>9}{'tar x':>9}",
    ]
    for row in rows:
        speeds = "".join(
            f"{row['bytes'] / _MB / max(row[key], 1e-6):9.0f}"
            for key in ("parse", "apply", "finish", "total")
        )
        lines.append(
            f"{row['title']:28}{row['bytes'] / _MB:6.0f}{row['entries']:9}{speeds}"
            f"{row['peak'] >> 20:5} MiB{row['bytes'] / _MB / row['tar']:9.0f}"
        )
    lines.append("")
    lines.append("parse: the archive alone; compare: what changed; total: opening, apply, compare")
    lines.append("tar x: into the kernel's ext4 on a loop device, whose own thread is left out")
    return "\n".join(lines)


def _archives(directory: Path) -> list[tuple[str, Path]]:
    choose = random.Random(1)
    noise = choose.randbytes(1 << 20)

    def content(size: int) -> BytesIO:
        start = choose.randrange(len(noise) - min(size, len(noise) - 1))
        return BytesIO((noise[start:] + noise * (size // len(noise) + 1))[:size])

    small, big, tree = (directory / f"{name}.tar" for name in ("small", "big", "tree"))
    with tarfile.open(small, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(20_000):
            _add(tar, f"usr/share/package-{i // 100}/some-file-{i}.txt", content,
                 int(choose.expovariate(1 / 9000)))  # fmt: skip
    with tarfile.open(big, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(3):
            _add(tar, f"big/{i}", content, 100 * _MB)
    _pack_tree(tree)
    return [("20,000 small files", small), ("3 big files", big), ("part of this system", tree)]


def _add(tar: tarfile.TarFile, name: str, content: Callable[[int], BytesIO], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, 1_700_000_000.5
    tar.addfile(info, content(size))


def _pack_tree(archive: Path) -> None:
    """Whole files, up to the limit: those of packages' small ones first."""
    seen: set[str] = set()
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for top in _TREES:
            for where, _, files in os.walk(f"/{top}"):
                for name in sorted(files):
                    path = os.path.join(where, name)
                    if tar.offset < _TREE_LIMIT and path not in seen:
                        seen.add(path)
                        tar.add(path)


def _measure(title: str, path: Path, rounds: int) -> Row:
    runs = [_run(path) for _ in range(rounds)]
    row: Row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    row["tar"] = statistics.median(_tar_into_kernel(path) for _ in range(rounds))
    return row | {"title": title, "bytes": path.stat().st_size, "entries": int(row["entries"])}


def _run(path: Path) -> dict[str, float]:
    """In a process of its own, whose memory is then known."""
    environment = os.environ | {"TMPDIR": str(path.parent)}
    command = [sys.executable, "-m", "bench.applying", str(path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _tar_into_kernel(path: Path) -> float:
    """CPU seconds of tar and sync; those of the loop device's own thread are left out."""
    disk, point = path.with_suffix(".img"), path.with_suffix(".mnt")
    with disk.open("wb") as file:
        file.truncate(_SIZE)
    point.mkdir()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", disk], check=True,
                   capture_output=True)  # fmt: skip
    subprocess.run(["mount", "-o", "loop", disk, point], check=True)
    try:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(["tar", "-xf", path, "-C", point], check=True)
        subprocess.run(["sync", "-f", point], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()
        disk.unlink()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _child(path: Path) -> dict[str, float]:
    from hybrid.build.ext4.layer import Ext4Layer
    from hybrid.build.ext4.stack import LayerStack
    from hybrid.build.tar.reader import TarReader

    stack = LayerStack(_SIZE)
    with Ext4Layer.make(_SIZE) as layer:
        stack.push(layer.finish())
    clock = time.process_time
    with path.open("rb", buffering=0) as file:
        start = clock()
        entries = 0
        reader = TarReader(file.read, path.name)
        for _ in reader:
            entries += 1
            for _ in reader.data():
                pass
        parsed = clock()
        file.seek(0)
        with Ext4Layer.open(stack) as layer:
            opened = clock()
            layer.apply(TarReader(file.read, path.name))
            applied = clock()
            layer.finish().close()
        end = clock()
    return {
        "entries": entries, "parse": parsed - start, "apply": applied - opened,
        "finish": end - applied, "total": end - parsed,
        "peak": _peak_memory(),
    }  # fmt: skip


def _peak_memory() -> int:
    """Bytes. (What getrusage says is inherited from the process that has started this one.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]))))
