"""How a writable mount ends: nothing that was written is lost without a word.

The Device is a raw file whose flushes wait, or fail, for as long as a file exists.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.mounting import MIB, ImageMaker, MountBench, poll_until

from hybrid.mount.kernel_support import Capability, Machine

_IO_FLUSHER = 0x00080000 | 0x00100000
"""PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, as /proc/PID/stat has them (linux/sched.h)."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def raw(images: ImageMaker, tmp_path: Path) -> Path:
    """A copy, since it is written to."""
    path = tmp_path / "raw.img"
    path.write_bytes(images.get("ext4").read_bytes())
    return path


def running_umount(bench: MountBench, target: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        bench.command("-v", "umount", target),
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_root
def test_umount_waits_for_the_last_flush(bench: MountBench, raw: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    record = bench.mount(raw, bench.mountpoint, "--writable", "--hold-flush", hold)
    (bench.mountpoint / "new").write_text("new\n")
    os.sync()
    hold.touch()
    umount = running_umount(bench, bench.mountpoint)
    # Longer than any command waits for a read-only server.
    with pytest.raises(subprocess.TimeoutExpired):
        umount.wait(6)
    os.kill(record["pid"], 0)
    hold.unlink()
    _, said = umount.communicate(timeout=20)
    assert umount.returncode == 0, said
    assert "written" in said or "writes the last changes" in said
    bench.assert_clean()
    bench.mount(raw, bench.mountpoint)
    assert (bench.mountpoint / "new").read_text() == "new\n"
    bench.succeed("umount", bench.mountpoint)


def test_an_exposed_disk_is_flushed_at_its_end(
    bench: MountBench, raw: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    record = bench.mount(raw, "--writable", "--mode", "fuse", "--hold-flush", hold)
    with open(record["file"], "r+b", buffering=0) as disk:
        disk.write(b"x" * 100)
    hold.touch()
    umount = running_umount(bench, record["id"])
    poll_until(lambda: bench.state_of(record) == "flushing", "the last flush")
    with pytest.raises(subprocess.TimeoutExpired):
        umount.wait(4)
    os.kill(record["pid"], signal.SIGTERM)  # changes nothing
    hold.unlink()
    _, said = umount.communicate(timeout=20)
    assert umount.returncode == 0, said
    assert raw.read_bytes()[:100] == b"x" * 100


@pytest.mark.parametrize("way", ["hybrid", "umount"])
@needs_root
def test_a_last_flush_that_fails_is_told_once(
    bench: MountBench, raw: Path, tmp_path: Path, way: str
) -> None:
    bad = tmp_path / "bad"
    record = bench.mount(raw, bench.mountpoint, "--writable", "--bad-flush", bad)
    # The kernel's own flushes fail too if there is something to write.
    subprocess.run(["sync", "-f", bench.mountpoint], check=True)
    subprocess.run(["mount", "-o", "remount,ro", bench.mountpoint], check=True)
    bad.touch()
    if way == "umount":
        subprocess.run(["umount", bench.mountpoint], check=True)
        poll_until(lambda: bench.state_of(record) == "failed", "the end of the server")
        # Nobody else takes the reason away.
        assert f"`hybrid umount {record['id']}` tells the reason" in bench.run("gc").stdout
        assert bench.state_of(record) == "failed"
        assert "may be lost" in bench.fail("umount", record["id"], code=13)
    else:
        line = bench.fail("umount", bench.mountpoint, code=13)
        assert line == (
            "hybrid: the last changes of raw raw.img may be lost: no space left for the index "
            "(what was synchronised before is safe)"
        )
    bench.assert_clean()
    bench.fail("umount", record["id"], code=4)


@needs_root
def test_foreground_tells_of_a_last_flush_that_failed(
    bench: MountBench, raw: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    with subprocess.Popen(
        bench.command("mount", raw, bench.mountpoint, "--writable", "--foreground",
                      "--bad-flush", bad),
        env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as mount:  # fmt: skip
        poll_until(lambda: os.path.ismount(bench.mountpoint), "the mount")
        poll_until(lambda: bench.list()[0]["state"] == "ready", "the record")
        subprocess.run(["mount", "-o", "remount,ro", bench.mountpoint], check=True)
        bad.touch()
        mount.send_signal(signal.SIGTERM)
        _, said = mount.communicate(timeout=20)
    assert mount.returncode == 13
    assert "may be lost" in said
    bench.assert_clean()


@needs_root
def test_a_server_that_is_stopped_is_not_killed(bench: MountBench, raw: Path) -> None:
    record = bench.mount(raw, bench.mountpoint, "--writable")
    (bench.mountpoint / "new").write_text("new\n")
    os.kill(record["pid"], signal.SIGSTOP)
    for options in ([], ["--lazy"]):
        line = bench.fail("umount", *options, bench.mountpoint, code=11)
        assert f"kill -CONT {record['pid']}" in line
    os.kill(record["pid"], signal.SIGCONT)
    bench.succeed("umount", bench.mountpoint)
    bench.mount(raw, bench.mountpoint)
    assert (bench.mountpoint / "new").read_text() == "new\n"
    bench.succeed("umount", bench.mountpoint)


@needs_root
def test_lazy_umount_writes_everything(bench: MountBench, raw: Path) -> None:
    bench.mount(raw, bench.mountpoint, "--writable")
    with open(bench.mountpoint / "new", "w") as file:
        bench.succeed("umount", "--lazy", bench.mountpoint)
        file.write("late\n")
    bench.assert_clean()
    bench.mount(raw, bench.mountpoint)
    assert (bench.mountpoint / "new").read_text() == "late\n"
    bench.succeed("umount", bench.mountpoint)


@needs_root
def test_a_server_that_died_is_told(bench: MountBench, raw: Path) -> None:
    """In mode fuse the disk has gone with it. In mode tcmu it can be resumed."""
    record = bench.mount(raw, bench.mountpoint, "--writable", "--mode", "fuse")
    os.kill(record["pid"], signal.SIGKILL)
    poll_until(lambda: bench.state_of(record) == "dead", "its end")
    done = bench.run("umount", bench.mountpoint)
    assert done.returncode == 0
    assert "died: changes that were not synchronised may be lost" in done.stderr


def test_the_server_is_an_io_flusher(bench: MountBench, raw: Path) -> None:
    record = bench.mount(raw, "--writable", "--mode", "fuse")
    text = Path(f"/proc/{record['pid']}/stat").read_text()
    flags = int(text.rpartition(")")[2].split()[6])
    log = Path(record["log"]).read_text()
    if Machine().has(Capability.SYS_RESOURCE):
        assert flags & _IO_FLUSHER == _IO_FLUSHER
        assert "PR_SET_IO_FLUSHER" not in log
    else:
        assert "the kernel refuses PR_SET_IO_FLUSHER" in log
    bench.succeed("umount", record["id"])
    other = bench.mount(raw, "--mode", "fuse")
    text = Path(f"/proc/{other['pid']}/stat").read_text()
    assert not int(text.rpartition(")")[2].split()[6]) & _IO_FLUSHER
    bench.succeed("umount", other["id"])


def test_a_start_that_fails_leaves_nothing(bench: MountBench, raw: Path) -> None:
    before = raw.read_bytes()
    bench.fail("mount", raw, "--writable", "--open", "fail", "--mode", "fuse", code=7)
    assert raw.read_bytes() == before
    bench.assert_clean()


@needs_root
def test_what_cannot_be_written_is_refused(bench: MountBench, images: ImageMaker) -> None:
    for kind in ("erofs", "squashfs"):
        line = bench.fail("mount", images.get(kind), bench.mountpoint, "--writable", code=8)
        assert f"holds {kind}, which cannot be written to" in line
        assert "overlayfs" in line
        bench.assert_clean()


def test_a_record_of_an_older_hybrid_is_read(bench: MountBench, raw: Path) -> None:
    record = bench.mount(raw, "--mode", "fuse")
    file = bench.state / record["id"] / "state.json"
    fields = json.loads(file.read_text())
    del fields["writable"], fields["upper"]
    file.write_text(json.dumps(fields))
    (found,) = bench.list()
    assert (found["state"], found["writable"], found["size"]) == ("ready", False, 24 * MIB)
    bench.succeed("umount", record["id"])
