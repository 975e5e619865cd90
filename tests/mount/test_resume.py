"""``hybrid resume`` where it has nothing to do or cannot do it; what it does is for the guest."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.mounting import ImageMaker, MountBench, poll_until


def _hybrid(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hybrid", *arguments], capture_output=True, text=True, check=False
    )


def test_a_live_mount_is_of_no_interest_to_it(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    line = bench.fail("resume", record["id"], code=8)
    assert "mode fuse" in line
    assert bench.state_of(record) == "ready"
    bench.succeed("umount", bench.mountpoint)


def test_a_dead_fuse_mount_cannot_be_resumed(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    os.kill(record["pid"], signal.SIGKILL)
    poll_until(lambda: bench.state_of(record) == "dead", "death")
    line = bench.fail("resume", bench.mountpoint, code=8)
    assert f"hybrid umount {record['id']}" in line
    bench.succeed("umount", bench.mountpoint)


def test_no_such_mount(bench: MountBench) -> None:
    bench.fail("resume", "12345678", code=4)


def test_usage() -> None:
    for arguments in ((), ("12345678", "--print-unit")):
        done = _hybrid("resume", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1


def test_the_unit_names_this_program() -> None:
    hybrid = Path(sys.executable).parent / "hybrid"
    done = subprocess.run([hybrid, "resume", "--print-unit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"ExecStart={hybrid} resume --foreground %i\n" in done.stdout
    assert "KillMode=process\n" in done.stdout
    assert "@HYBRID@" not in done.stdout


def test_the_record_tells_how_to_open_the_image_again(
    bench: MountBench, images: ImageMaker
) -> None:
    record = bench.mount(images.get("erofs"))
    state = json.loads((bench.state / record["id"] / "state.json").read_text())
    assert state["origin"]["raw"] == str(images.get("erofs"))
    assert state["identity"].startswith("raw erofs.img")
    bench.succeed("umount", record["id"])
