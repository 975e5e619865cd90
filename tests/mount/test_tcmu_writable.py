"""Writable images as SCSI disks: servers that are killed under writers lose nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from support.exposed import expose
from support.mounting import MIB, PATIENCE, ImageMaker, poll_until
from support.raw_image import config_of
from support.tcmu_bench import Child, TcmuBench

from hybrid.cli.resume import _opener_of
from hybrid.errors import BusyError
from hybrid.mount import resume as resuming
from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.listing import list_mounts
from hybrid.mount.origin import ImageOrigin
from hybrid.mount.state import MountRecord
from hybrid.mount.upper_place import plan_changes

pytestmark = pytest.mark.guest

_IO_FLUSHER = 0x00080000 | 0x00100000
"""PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, as /proc/PID/stat has them (linux/sched.h)."""


def mount_image(
    config: Path, upper: Path, mountpoint: Path | None = None, size: int = 0
) -> MountRecord:
    """As ``hybrid mount --rw --mode tcmu`` does."""
    origin = ImageOrigin.of_command(str(config), "", False, None)
    changes = plan_changes(origin.image, upper, size)
    origin = origin.written_to(changes)
    opener = origin.opener(origin.load_settings())
    return attach(
        MountRequest(str(config), opener, origin.to_json(), mountpoint, "tcmu", changes=changes)
    )


def fio(directory: Path, *options: str) -> list[str]:
    return ["fio", "--name=v", f"--directory={directory}", "--rw=randwrite", "--size=6M",
            "--bsrange=4k-64k", "--direct=1", "--ioengine=libaio", "--iodepth=4",
            "--verify=crc32c", "--verify_fatal=1", "--randseed=3", "--fsync=32",
            *options]  # fmt: skip


def test_kill_9_under_fio_and_resume(tcmu: TcmuBench, images: ImageMaker, tmp_path: Path) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    upper = tmp_path / "upper"
    record = mount_image(config, upper, tcmu.mountpoint)
    started = record
    with subprocess.Popen(
        fio(tcmu.mountpoint, "--loops=2"), stdout=subprocess.PIPE, text=True
    ) as writer:
        for _ in range(3):
            wait_for_writes(writer, record.exposed)
            tcmu.kill(record)
            assert [mount.state for mount in list_mounts()] == ["dead"]
            record = resuming.resume(tcmu.current(record), _opener_of)
            assert record.identity == started.identity
        said, _ = writer.communicate(timeout=60 * PATIENCE)
        assert writer.returncode == 0, said
    assert tcmu.detach(tcmu.current(record))
    record = mount_image(config, upper, tcmu.mountpoint)
    done = subprocess.run(
        fio(tcmu.mountpoint, "--verify_only"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    images.check_tree(tcmu.mountpoint)
    assert tcmu.detach(record)
    record = mount_image(config, upper)
    subprocess.run(["e2fsck", "-fn", record.exposed], check=True, capture_output=True)
    assert tcmu.detach(record)


def wait_for_writes(writer: subprocess.Popen[str], disk: Path) -> None:
    before = _written(disk)
    poll_until(
        lambda: writer.poll() is not None or _written(disk) > before + MIB, "a MiB written", 20
    )


def _written(disk: Path) -> int:
    """Bytes that the kernel has had written (sectors are field 7 of stat)."""
    return int((Path("/sys/block") / disk.name / "stat").read_text().split()[6]) * 512


def test_umount_waits_for_a_resume(tcmu: TcmuBench, images: ImageMaker, tmp_path: Path) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    record = mount_image(config, tmp_path / "upper", tcmu.mountpoint)
    (tcmu.mountpoint / "new").write_text("new\n")
    tcmu.kill(record)
    with pytest.raises(BusyError, match="is dead, and changes wait for it") as caught:
        tcmu.detach(tcmu.current(record))
    assert f"hybrid resume {record.id}" in caught.value.hint
    record = resuming.resume(tcmu.current(record), _opener_of)
    assert tcmu.detach(record)
    record = mount_image(config, tmp_path / "upper", tcmu.mountpoint)
    assert (tcmu.mountpoint / "new").read_text() == "new\n"
    assert tcmu.detach(record)


def test_a_server_that_dies_while_everything_is_written_back(
    tcmu: TcmuBench, images: ImageMaker, tmp_path: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    record = mount_image(config, tmp_path / "upper", tcmu.mountpoint)
    blob = random.Random(2).randbytes(4 * MIB)
    (tcmu.mountpoint / "new").write_bytes(blob)
    os.kill(record.pid, signal.SIGSTOP)
    umount = Child(lambda: subprocess.run(["umount", tcmu.mountpoint], check=True) and "")
    poll_until(lambda: _is_writing(record.exposed), "writes that wait")
    tcmu.kill(record)
    assert umount.state() == "S"  # it waits for its child, which waits for the disk
    resuming.resume(tcmu.current(record), _opener_of)
    assert umount.result() == ""
    # The new server finds its mount gone, and takes the rest away.
    poll_until(lambda: not tcmu.leftovers(), "the end of the new server", 15)
    record = mount_image(config, tmp_path / "upper", tcmu.mountpoint)
    assert (tcmu.mountpoint / "new").read_bytes() == blob
    assert tcmu.detach(record)


def _is_writing(disk: Path) -> bool:
    return (Path("/sys/block") / disk.name / "inflight").read_text().split()[1] != "0"


def test_discarded_space_comes_back(tcmu: TcmuBench, images: ImageMaker, tmp_path: Path) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    upper = tmp_path / "upper"
    record = mount_image(config, upper, tcmu.mountpoint)
    (tcmu.mountpoint / "blob").write_bytes(random.Random(1).randbytes(10 * MIB))
    os.sync()
    used = _used(upper)
    assert used > 10 * MIB
    (tcmu.mountpoint / "blob").unlink()
    os.sync()
    subprocess.run(["fstrim", tcmu.mountpoint], check=True)
    os.sync()
    assert tcmu.detach(record)
    assert _used(upper) < used - 9 * MIB


def _used(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def test_a_mounted_ext4_grows(tcmu: TcmuBench, images: ImageMaker, tmp_path: Path) -> None:
    config = config_of(images.get("ext4-nojournal"), tmp_path / "image")
    record = mount_image(config, tmp_path / "upper", tcmu.mountpoint, 100 * MIB)
    status = os.statvfs(tcmu.mountpoint)
    assert status.f_blocks * status.f_frsize > 80 * MIB
    images.check_tree(tcmu.mountpoint)
    flags = int(Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[6])
    assert flags & _IO_FLUSHER == _IO_FLUSHER
    assert tcmu.detach(record)


def test_umount_waits_for_the_last_flush(tcmu: TcmuBench, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    raw = tcmu.raw(MIB)
    record = expose(raw, "tcmu", writable=True, hold_flush=str(hold))
    with open(record.exposed, "r+b", buffering=0) as disk:
        disk.write(b"x" * 4096)
        os.fsync(disk.fileno())
    hold.touch()
    umount = Child(lambda: "ended" if tcmu.detach(record) else "")
    poll_until(lambda: record.flushing.exists() or _has_flush(record), "the last flush")
    hold.unlink()
    assert umount.result() == "ended"
    os.waitpid(record.pid, 0)
    assert raw.read_bytes()[:4096] == b"x" * 4096


def _has_flush(record: MountRecord) -> bool:
    """sd sends one when the disk goes."""
    return not record.exposed.exists()
