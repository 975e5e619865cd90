"""The server is killed with -9 under load and resumed: no I/O error, no lost or wrong data."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.mounting import MIB, PATIENCE, ImageMaker, poll_until
from support.tcmu_bench import KernelLog, TcmuBench, content_of, reading

pytestmark = pytest.mark.guest

OUTAGE_SECONDS = 65


@pytest.mark.parametrize("options", [{}, {"remote": True, "jitter": 30}], ids=["local", "remote"])
def test_readers_go_on(tcmu: TcmuBench, kernel_log: KernelLog, options: dict[str, object]) -> None:
    record = tcmu.attach(tcmu.raw(), **options)
    with reading(record.exposed, tcmu.truth, 1) as one, reading(record.exposed, tcmu.truth, 2):
        for _ in range(3):
            tcmu.kill(record)
            one.hangs()
            record = tcmu.resume(record)
            one.go_on()
    assert kernel_log.trouble() == []
    assert tcmu.detach(record)


def test_an_outage_of_a_minute(tcmu: TcmuBench, kernel_log: KernelLog) -> None:
    record = tcmu.attach(tcmu.raw())
    with reading(record.exposed, tcmu.truth) as reader:
        tcmu.kill(record)
        reader.hangs()
        time.sleep(OUTAGE_SECONDS)
        assert not reader.has_ended()
        record = tcmu.resume(record)
        reader.go_on()
    assert kernel_log.trouble() == []
    assert tcmu.detach(record)


@contextmanager
def fio(disk: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    """Random writes all over the disk, each of which is read and verified at the end."""
    command = [
        "fio", "--name=survival", f"--filename={disk}", f"--size={size}", "--direct=1",
        "--ioengine=libaio", "--iodepth=16", "--rw=randwrite", "--bs=4k", "--randseed=3",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=0",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def requests(disk: Path) -> tuple[int, int]:
    """Reads and writes that the disk has answered (kernel: Documentation/block/stat.rst)."""
    fields = (Path("/sys/block") / disk.name / "stat").read_text().split()
    return int(fields[0]), int(fields[4])


@pytest.mark.parametrize("options", [{}, {"remote": True, "jitter": 10}], ids=["local", "remote"])
def test_writes_under_verification(
    tcmu: TcmuBench, kernel_log: KernelLog, options: dict[str, object]
) -> None:
    size = (4 if options else 8) * MIB
    blocks = size // 4096
    record = tcmu.attach(tcmu.raw(size), writable=True, **options)
    disk = record.exposed
    reads, writes = requests(disk)
    with fio(disk, size) as process:
        # Twice while it writes, once while it verifies.
        for which, wanted in (
            (1, writes + blocks // 4),
            (1, writes + blocks // 2),
            (0, reads + blocks // 4),
        ):
            poll_until(lambda: requests(disk)[which] >= wanted, "requests", 20.0)  # noqa: B023
            tcmu.kill(record)
            assert process.poll() is None
            record = tcmu.resume(record)
        output, _ = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 0, output
    assert "err= 0" in output
    reads_after, writes_after = requests(disk)
    assert writes_after - writes >= blocks
    assert reads_after - reads >= blocks
    assert content_of(disk, size) == (tcmu.directory / "raw.img").read_bytes() != tcmu.truth
    assert kernel_log.trouble() == []
    assert tcmu.detach(record)


def test_a_mounted_tree(tcmu: TcmuBench, images: ImageMaker, kernel_log: KernelLog) -> None:
    """Through the page cache: files that nobody has read before the server's death."""
    record = tcmu.attach(images.get("ext4"), tcmu.mountpoint)
    tcmu.kill(record)
    record = tcmu.resume(record)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    images.check_tree(tcmu.mountpoint)
    assert tcmu.current(record) == record
    assert kernel_log.trouble() == []
    assert tcmu.detach(record)


def test_identity_stays(tcmu: TcmuBench) -> None:
    record = tcmu.attach(tcmu.raw(MIB))
    before = identity(record.exposed)
    tcmu.kill(record)
    record = tcmu.resume(record)
    assert identity(record.exposed) == before
    assert tcmu.detach(record)


def identity(disk: Path) -> list[bytes]:
    """What sg3-utils and udev name a disk by: WWN, serial and their pages as sysfs has them.

    Asked anew, of the server that there is now.
    """
    device = Path("/sys/block") / disk.name / "device"
    (device / "rescan").write_text("1")
    return [(device / name).read_bytes() for name in ("wwid", "vpd_pg80", "vpd_pg83", "inquiry")]
