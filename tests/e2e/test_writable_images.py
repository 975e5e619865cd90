"""``hybrid mount --rw`` with the real command: changes are kept, and survive a crash."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support import golden_image
from support.build_lsmt import build_append_rw
from support.image_bench import ImageBench
from support.mounting import MIB, ImageMaker, images, poll_until
from support.raw_image import config_of
from support.side_servers import SideServer
from support.tree import read_tree

from hybrid.mount.leftover import YOUNG_SECONDS
from hybrid.mount.processes import process_state

__all__ = ["images"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ImageBench]:
    made = ImageBench(tmp_path)
    made.environment["HYBRID_DATA_DIR"] = str(tmp_path / "data")
    yield made
    try:
        made.assert_clean()
    finally:
        made.tear_down()


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    return tmp_path / "upper"


def mount(bench: ImageBench, *arguments: object) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(bench.succeed("mount", "--json", "--rw", *arguments))
    return record


def make_old(path: Path) -> None:
    then = time.time() - YOUNG_SECONDS - 1
    os.utime(path, (then, then))


def features(disk: Path) -> str:
    done = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if "features" in line)


def test_changes_to_the_golden_image_are_kept(
    bench: ImageBench, tmp_path: Path, upper: Path
) -> None:
    image = golden_image.layout(tmp_path / "oci")
    record = mount(bench, "--upper", upper, image, bench.mountpoint)
    assert (record["writable"], record["upper"]) == (True, str(upper))
    (found,) = bench.list()
    assert (found["writable"], found["upper"], found["state"]) == (True, str(upper), "ready")
    assert "has_journal" in features(Path(record["loop"]))
    (bench.mountpoint / "new").mkdir()
    (bench.mountpoint / "new" / "file").write_bytes(b"n" * 100_000)
    (bench.mountpoint / "bin").rename(bench.mountpoint / "renamed")
    tree = read_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)

    mount(bench, "--upper", upper, image, bench.mountpoint)
    assert read_tree(bench.mountpoint) == tree
    bench.succeed("umount", bench.mountpoint)
    # The image is what it was.
    bench.mount(image, bench.mountpoint, "--json")
    assert not (bench.mountpoint / "new").exists()
    assert (bench.mountpoint / "bin").exists()
    bench.succeed("umount", bench.mountpoint)


def test_without_a_name_the_changes_go_to_the_data_directory(
    bench: ImageBench, tmp_path: Path
) -> None:
    image = golden_image.layout(tmp_path / "oci")
    records = [mount(bench, image, bench.mountpoint)]
    uppers = tmp_path / "data" / "uppers"
    assert [str(path) for path in uppers.iterdir()] == [records[0]["upper"]]
    assert uppers.stat().st_mode & 0o777 == 0o700
    done = json.loads(bench.succeed("umount", "--json", bench.mountpoint))
    assert done["upper"] == records[0]["upper"]
    records.append(mount(bench, image, bench.mountpoint))
    bench.succeed("umount", bench.mountpoint)
    assert {str(path) for path in uppers.iterdir()} == {record["upper"] for record in records}


@pytest.mark.parametrize("kind", ["ext4", "ext4-nojournal", "ext2", "ext4-dirty", "xfs", "btrfs"])
def test_file_systems(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path, kind: str
) -> None:
    config = config_of(images.get(kind), tmp_path / "image")
    for number in range(2):
        mount(bench, "--upper", upper, config, bench.mountpoint)
        images.check_tree(bench.mountpoint)
        (bench.mountpoint / f"new{number}").write_bytes(bytes([number]) * 300_000)
        bench.succeed("umount", bench.mountpoint)
    record = mount(bench, "--upper", upper, config, bench.mountpoint)
    assert (bench.mountpoint / "new0").read_bytes() == bytes(300_000)
    assert (bench.mountpoint / "new1").read_bytes() == b"\1" * 300_000
    if kind.startswith("ext"):
        assert "has_journal" in features(Path(record["loop"]))
    bench.succeed("umount", bench.mountpoint)


def test_no_journal_on_request(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4-nojournal"), tmp_path / "image")
    record = mount(bench, "--no-journal", "--upper", upper, config, bench.mountpoint)
    assert "has_journal" not in features(Path(record["loop"]))
    bench.succeed("umount", bench.mountpoint)


@pytest.mark.parametrize("journal", [True, False])
def test_after_kill_9_what_was_synchronised_is_there(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path, journal: bool
) -> None:
    config = config_of(images.get("ext4-nojournal"), tmp_path / "image")
    options = ["--upper", upper] + ([] if journal else ["--no-journal"])
    record = mount(bench, "--mode", "fuse", *options, config, bench.mountpoint)
    for number in range(50):
        path = bench.mountpoint / f"file{number}"
        with path.open("wb") as file:
            file.write(bytes([number]) * 20_000)
            file.flush()
            os.fsync(file.fileno())
    os.fsync(directory := os.open(bench.mountpoint, os.O_RDONLY))
    os.close(directory)
    (bench.mountpoint / "late").write_bytes(b"l" * 1000)
    os.kill(record["pid"], signal.SIGKILL)
    poll_until(lambda: bench.state_of(record) == "dead", "its end")
    assert bench.run("umount", bench.mountpoint).returncode == 0

    done = bench.run("-v", "mount", "--rw", *options, config, bench.mountpoint)
    assert done.returncode == 0, done.stderr
    assert "checking the file system" in done.stderr
    for number in range(50):
        path = bench.mountpoint / f"file{number}"
        assert path.read_bytes() == bytes([number]) * 20_000
    bench.succeed("umount", bench.mountpoint)
    exposed = mount(bench, "--no-mount", "--upper", upper, config)
    subprocess.run(["e2fsck", "-fn", exposed["file"]], check=True, capture_output=True)
    bench.succeed("umount", exposed["id"])


def test_damage_that_e2fsck_leaves_to_a_person(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4-nojournal"), tmp_path / "image")
    exposed = mount(bench, "--no-mount", "--mode", "fuse", "--upper", upper, config)
    with open(exposed["file"], "r+b", buffering=0) as disk:
        disk.seek(1024 + 58)
        disk.write(b"\2\0")  # errors were met
        disk.seek(8192)
        disk.write(b"\xff" * 16384)
    bench.succeed("umount", exposed["id"])
    line = bench.fail("mount", "--rw", "--upper", upper, config, bench.mountpoint, code=7)
    assert "e2fsck finds damage" in line
    assert f"hybrid mount --no-mount --rw --upper {upper}" in line
    bench.assert_clean()


@pytest.mark.parametrize("kind", ["ext4", "ext4-nojournal", "xfs", "btrfs"])
def test_a_larger_disk_is_filled(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path, kind: str
) -> None:
    config = config_of(images.get(kind), tmp_path / "image")
    for size in ("600M", "600M", "1G"):
        record = mount(bench, "--size", size, "--upper", upper, config, bench.mountpoint)
        wanted = {"600M": 600 * MIB, "1G": 1024 * MIB}[size]
        assert record["size"] == wanted
        status = os.statvfs(bench.mountpoint)
        assert 0.8 * wanted < status.f_blocks * status.f_frsize <= wanted
        images.check_tree(bench.mountpoint)
        bench.succeed("umount", bench.mountpoint)
    # Without the option it stays as it is, and it never shrinks.
    record = mount(bench, "--upper", upper, config, bench.mountpoint)
    assert record["size"] == 1024 * MIB
    bench.succeed("umount", bench.mountpoint)
    line = bench.fail(
        "mount", "--rw", "--size", "600M", "--upper", upper, config, bench.mountpoint, code=2
    )
    assert "smaller than the disk" in line


def test_sizes_that_are_refused(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    for size in ("", "x", "-1", "1.5G", "1000", "0", "9999999T", "64 G"):
        line = bench.fail("mount", "--rw", "--size", size, config, bench.mountpoint, code=2)
        assert "is no size of a disk" in line
    line = bench.fail(
        "mount", "--rw", "--size", "4M", "--upper", upper, config, bench.mountpoint, code=2
    )
    assert "smaller than the disk" in line
    assert not upper.exists()
    assert not (tmp_path / "data").exists()


def test_uppers_that_are_refused(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    record = mount(bench, "--upper", upper, config, bench.mountpoint)
    other = tmp_path / "other"
    other.mkdir()
    before = sorted(path.name for path in upper.iterdir())
    line = bench.fail("mount", "--rw", "--upper", upper, config, other, code=11)
    assert f"{upper} is in use by process {record['pid']}" in line
    assert sorted(path.name for path in upper.iterdir()) == before
    bench.succeed("umount", bench.mountpoint)

    foreign = config_of(images.get("xfs"), tmp_path / "foreign")
    line = bench.fail("mount", "--rw", "--upper", upper, foreign, other, code=7)
    assert f"{upper} was made over {config}" in line
    assert "not over this" in line

    (other / "file").write_text("mine")
    line = bench.fail("mount", "--rw", "--upper", other, config, bench.mountpoint, code=2)
    assert "neither empty nor" in line
    assert (other / "file").read_text() == "mine"
    line = bench.fail("mount", "--rw", "--upper", other / "file", config, bench.mountpoint, code=2)
    assert "is no directory" in line
    below = bench.mountpoint / "upper"
    line = bench.fail("mount", "--rw", "--upper", below, config, bench.mountpoint, code=2)
    assert "below the mount point" in line
    line = bench.fail("mount", "--upper", upper, config, bench.mountpoint, code=2)
    assert "add --rw" in line


def test_an_upper_on_a_read_only_file_system(
    bench: ImageBench, images: ImageMaker, tmp_path: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    place = tmp_path / "place"
    (place / "empty").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", place], check=True)
    try:
        (place / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for name in ("empty", "new"):
            line = bench.fail(
                "mount", "--rw", "--upper", place / name, config, bench.mountpoint, code=9
            )
            assert "Read-only file system" in line
    finally:
        subprocess.run(["umount", place], check=True)


def test_no_space_for_an_upper(bench: ImageBench, images: ImageMaker, tmp_path: Path) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    try:
        (place / "ballast").write_bytes(bytes(60 * 1024))
        line = bench.fail(
            "mount", "--rw", "--upper", place / "upper", config, bench.mountpoint, code=13
        )
        assert "No space left" in line
        assert not (place / "upper").exists()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_start_that_fails_takes_back_what_it_made(
    bench: ImageBench, images: ImageMaker, tmp_path: Path
) -> None:
    config = config_of(images.get("erofs"), tmp_path / "image")
    new = tmp_path / "a" / "b"
    line = bench.fail("mount", "--rw", "--upper", new, config, bench.mountpoint, code=8)
    assert "overlayfs" in line
    assert not new.parent.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    bench.fail("mount", "--rw", "--upper", empty, config, bench.mountpoint, code=8)
    assert list(empty.iterdir()) == []
    # Continued, it stays.
    exposed = mount(bench, "--no-mount", "--upper", empty, config)
    bench.succeed("umount", exposed["id"])
    before = sorted(path.name for path in empty.iterdir())
    bench.fail("mount", "--rw", "--upper", empty, config, bench.mountpoint, code=8)
    assert sorted(path.name for path in empty.iterdir()) == before


def test_a_missing_program_is_named(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4-nojournal"), tmp_path / "image")
    hide = 'mount -t tmpfs none /usr/sbin && mount -t tmpfs none /sbin && exec "$@"'
    prefix = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", hide, "sh")
    done = bench.run("mount", "--rw", "--upper", upper, config, bench.mountpoint, prefix=prefix)
    assert done.returncode == 10, done
    assert done.stderr == "hybrid: tune2fs is missing (install the package e2fsprogs)\n"
    assert not upper.exists()


def fill(descriptor: int) -> int:
    """Write until there is no space; how many bytes were taken."""
    for done in range(0, 24 * MIB, 65536):
        try:
            os.pwrite(descriptor, b"x" * 65536, done)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return done
    pytest.fail("the disk was never full")


def test_a_full_disk_is_enospc_and_nothing_is_damaged(
    bench: ImageBench, images: ImageMaker, tmp_path: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "none", place], check=True)
    try:
        record = mount(bench, "--upper", place / "upper", "--no-mount", "--mode", "fuse", config)
        ballast = place / "ballast"
        ballast.write_bytes(bytes(8 * MIB))
        with open(record["file"], "r+b", buffering=0) as disk:
            before = os.pread(disk.fileno(), 24 * MIB, 0)
            done = fill(disk.fileno())
            assert 0 < done < 8 * MIB
            assert os.pread(disk.fileno(), done, 0) == b"x" * done
            assert os.pread(disk.fileno(), 24 * MIB, done) == before[done:]
            ballast.unlink()
            os.pwrite(disk.fileno(), b"y" * 65536, done)
            os.fsync(disk.fileno())
            assert os.pread(disk.fileno(), 65536, done) == b"y" * 65536
        assert "ENOSPC for WRITE" in Path(record["log"]).read_text()
        bench.succeed("umount", record["id"])
        record = mount(bench, "--upper", place / "upper", "--no-mount", "--mode", "fuse", config)
        with open(record["file"], "rb", buffering=0) as disk:
            now = os.pread(disk.fileno(), 24 * MIB, 0)
        assert now == b"x" * done + b"y" * 65536 + before[done + 65536 :]
        bench.succeed("umount", record["id"])
    finally:
        subprocess.run(["umount", place], check=True)


def test_the_upper_of_a_config(bench: ImageBench, images: ImageMaker, tmp_path: Path) -> None:
    directory = tmp_path / "image"
    raw = images.get("ext4")
    data, index = build_append_rw([], raw.stat().st_size)
    directory.mkdir()
    (directory / "data").write_bytes(data)
    (directory / "index").write_bytes(index)
    place = {"data": str(directory / "data"), "index": str(directory / "index")}
    config = config_of(raw, directory, upper=place)
    record = mount(bench, config, bench.mountpoint)
    assert record["upper"] == place["data"]
    (bench.mountpoint / "new").write_text("new\n")
    bench.succeed("umount", bench.mountpoint)
    line = bench.fail(
        "mount", "--rw", "--upper", tmp_path / "upper", config, bench.mountpoint, code=2
    )
    assert "names an upper of its own" in line
    bench.succeed("mount", config, bench.mountpoint)
    assert (bench.mountpoint / "new").read_text() == "new\n"
    with pytest.raises(OSError, match="Read-only"):
        (bench.mountpoint / "more").touch()
    bench.succeed("umount", bench.mountpoint)


def test_fio_verifies_what_it_writes(
    bench: ImageBench, images: ImageMaker, tmp_path: Path, upper: Path
) -> None:
    config = config_of(images.get("ext4"), tmp_path / "image")
    mount(bench, "--size", "256M", "--upper", upper, config, bench.mountpoint)
    job = ["fio", "--name=v", f"--directory={bench.mountpoint}", "--rw=randwrite", "--size=24M",
           "--bsrange=512-64k", "--blockalign=512", "--direct=1", "--ioengine=libaio",
           "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--randseed=3",
           "--fsync=64"]  # fmt: skip
    subprocess.run([*job, "--do_verify=1"], check=True, capture_output=True, timeout=120)
    bench.succeed("umount", bench.mountpoint)
    mount(bench, "--upper", upper, config, bench.mountpoint)
    subprocess.run([*job, "--verify_only"], check=True, capture_output=True, timeout=120)
    bench.succeed("umount", bench.mountpoint)


def test_what_other_converters_leave_is_no_obstacle(
    bench: ImageBench, tmp_path: Path, upper: Path
) -> None:
    """e2fsck does not like lost+found of images that overlaybd's own tools made."""
    image = golden_image.layout(tmp_path / "oci")
    options = ("--mode", "fuse", "--no-journal", "--upper", upper, image, bench.mountpoint)
    record = mount(bench, *options)
    (bench.mountpoint / "new").write_text("new")
    tree = read_tree(bench.mountpoint)
    os.sync()
    os.kill(record["pid"], signal.SIGKILL)
    bench.run("umount", "--lazy", bench.mountpoint)
    poll_until(lambda: not bench.list(), "the end of the mount")
    record = mount(bench, *options)
    assert read_tree(bench.mountpoint) == tree
    bench.succeed("umount", bench.mountpoint)
    record = mount(bench, "--no-mount", "--mode", "fuse", "--upper", upper, image)
    done = subprocess.run(["e2fsck", "-fn", record["file"]], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    bench.succeed("umount", record["id"])


class SilentRegistry(SideServer):
    """Takes the first request, and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.end = threading.Event(), threading.Event()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        self.asked.set()
        self.end.wait(60)
        request.close_connection = True


@pytest.mark.parametrize("with_server", [True, False], ids=["both", "command"])
def test_killed_while_it_starts(bench: ImageBench, tmp_path: Path, with_server: bool) -> None:
    """The upper that nobody was told of is found, and removed once nobody can be at work on it."""
    with SilentRegistry() as registry:
        assert isinstance(registry, SilentRegistry)
        image = f"{registry.host}/app:v1"
        command = bench.command("mount", "--rw", "--no-mount", "--mode", "fuse", image)
        process = subprocess.Popen(command, env=bench.environment, cwd=tmp_path)
        try:
            assert registry.asked.wait(30)
            (record,) = bench.list()
            (directory,) = (tmp_path / "data/uppers").iterdir()
            make_old(directory)
            assert json.loads(bench.succeed("gc", "--json")) == []
        finally:
            process.kill()
            if with_server:
                os.kill(record["pid"], signal.SIGKILL)
            process.wait()
            poll_until(lambda: process_state(record["pid"]) in ("", "Z"), "end of the server")
            registry.end.set()
    assert list(directory.iterdir()) == []
    state = bench.state / record["id"] / "state.json"
    assert state.exists() == with_server
    if with_server:
        make_old(state)
    found = json.loads(bench.succeed("gc", "--json"))
    ours = [item for item in found if str(tmp_path) in item["text"] or item["name"] == record["id"]]
    assert [item["kind"] for item in ours] == [*["state"] * with_server, "upper"]
    assert all(item["removed"] for item in ours)
    assert list((tmp_path / "data/uppers").iterdir()) == []
