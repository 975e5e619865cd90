"""A real ext4 with a journal on a writable disk, and a power cut at any step of what that stores.

At every step the journal can be replayed, e2fsck finds nothing else to do, and what was fsynced is
there.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from support.crash_storage import Fate, Log, Replay
from support.mounting import MIB, ImageMaker, MountBench

from hybrid.core.upper_directory import UpperDirectory
from hybrid.core.upper_manifest import Manifest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

_FSCK_OK = (0, 1)
"""Nothing to do, or all corrected (e2fsck(8))."""
_STEPS = 90
"""How many crashes are looked at, of more than a thousand; HYPOTHESIS_PROFILE=search: all."""


@dataclass(frozen=True)
class Synced:
    name: str
    digest: str
    when: int
    """Nanoseconds of the monotonic clock, after the fsync returned."""


async def fill(directory: Path, content: bytes) -> None:
    size = len(content)
    UpperDirectory.create(directory, Manifest("recorded", "", "", size))
    disk = await UpperDirectory(directory).open(None, "recorded")
    for offset in range(0, size, MIB):
        await disk.pwrite(offset, content[offset : offset + MIB])
    await disk.aclose()


def work(mountpoint: Path) -> list[Synced]:
    """Make, change, rename and remove files; fsync some of them, and their directory."""
    dice = random.Random(11)
    synced = []
    directory = os.open(mountpoint, os.O_RDONLY)
    for number in range(24):
        path = mountpoint / f"file{number}"
        data = dice.randbytes(dice.choice((100, 5000, 60_000, 300_000)))
        with path.open("wb") as file:
            file.write(data)
            if number % 2 == 0:
                file.flush()
                os.fsync(file.fileno())
                os.fsync(directory)
                digest = hashlib.sha256(data).hexdigest()
                synced.append(Synced(path.name, digest, time.monotonic_ns()))
        odd = mountpoint / f"file{number - 1 - number % 2}"
        if number % 5 == 4 and odd.exists():
            odd.rename(mountpoint / f"moved{number}")
        if number % 3 == 2 and number % 2:
            path.unlink()
    os.close(directory)
    return [found for found in synced if (mountpoint / found.name).exists()]


def raw_of(directory: Path, target: Path) -> None:
    async def read() -> None:
        disk = await UpperDirectory(directory).open(None, "recorded")
        with target.open("wb") as file:
            for offset in range(0, disk.size, MIB):
                file.write(await disk.pread(offset, min(MIB, disk.size - offset)))
        await disk.aclose()

    trio.run(read)


def fsck(raw: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["e2fsck", "-f", *options, str(raw)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_disk(raw: Path, expected: list[Synced], scratch: Path) -> None:
    done = fsck(raw, "-p")
    assert done.returncode in _FSCK_OK, done
    done = fsck(raw, "-n")
    assert done.returncode == 0, done
    scratch.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,ro", raw, scratch], check=True)
    try:
        for found in expected:
            content = (scratch / found.name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == found.digest, found
    finally:
        subprocess.run(["umount", scratch], check=True)


def cases(log: Log) -> list[tuple[int, Fate]]:
    every = [(count, fate) for count in range(1, len(log.ops) + 1) for fate in Fate]
    if os.environ.get("HYPOTHESIS_PROFILE") == "search":
        return every
    return random.Random(3).sample(every, min(_STEPS, len(every)))


def test_power_cuts_under_a_real_ext4(
    bench: MountBench, images: ImageMaker, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, log_file = memory_path / "changes", memory_path / "log"
    trio.run(fill, changes, images.get("ext4").read_bytes())
    arguments = (changes, bench.mountpoint, "--mode", "fuse", "--writable", "--record", log_file)
    bench.mount(*arguments)
    synced = work(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    log: Log = pickle.loads(log_file.read_bytes())
    assert {op.what for op in log.ops} >= {"write", "sync", "punch"}
    crashed, raw = memory_path / "crashed", memory_path / "raw"
    for count, fate in cases(log):
        Replay(log).write(crashed, count, fate)
        if fate is not Fate.KILLED:
            (crashed / "writable_index.unflushed").unlink(missing_ok=True)  # of another boot
        raw_of(crashed, raw)
        subprocess.run(["rm", "-r", crashed], check=True)
        expected = [found for found in synced if found.when < log.times[count - 1]]
        check_disk(raw, expected, memory_path / "look")
    bench.assert_clean()
