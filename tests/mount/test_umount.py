"""Ways a mount ends: orderly, busy, lazy, by umount(8), and under a dead or stopped server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.mounting import ImageMaker, MountBench, poll_until

from hybrid.mount.processes import process_state

ANSWER_SECONDS = 5.0
"""list and umount together, whatever the server does."""


@contextmanager
def holder(*arguments: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that runs Python code until the block ends; ready when it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate(timeout=10)


WAIT = "print('ready', flush=True); sys.stdin.read()"
OPEN = f"import sys; file = open(sys.argv[1]); {WAIT}"
STAND = f"import sys; {WAIT}"
READ_AHEAD = (  # its file's blocks are looked up before; after a line it asks for bytes of them
    "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.pread(fd, 1, 0); "
    "print('ready', flush=True); sys.stdin.readline(); "
    "os.posix_fadvise(fd, 1 << 20, 1 << 20, os.POSIX_FADV_WILLNEED)"
)
MAP = (
    "import mmap, sys; file = open(sys.argv[1], 'rb'); "
    f"view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); file.close(); {WAIT}"
)


@pytest.fixture(params=["ext4", "erofs"])
def kind(request: pytest.FixtureRequest) -> str:
    """Once over a loop device, once without."""
    return str(request.param)


def mounted(bench: MountBench, images: ImageMaker, kind: str) -> dict[str, Any]:
    return bench.mount(images.get(kind), bench.mountpoint)


@pytest.mark.parametrize("name", ["mountpoint", "id", "prefix", "relative", "symlink", "file"])
def test_a_mount_is_found_by_every_name_of_it(
    bench: MountBench, images: ImageMaker, name: str
) -> None:
    record = mounted(bench, images, "ext4")
    (bench.directory / "alias").symlink_to("mnt")
    names = {
        "mountpoint": record["mountpoint"] + "/",
        "id": record["id"],
        "prefix": record["id"][:5],
        "relative": "mnt",
        "symlink": bench.directory / "alias",
        "file": record["file"],
    }
    answer = json.loads(bench.succeed("umount", names[name], "--json"))
    assert answer == {
        "id": record["id"],
        "mountpoint": record["mountpoint"],
        "ended": True,
        "upper": None,
    }
    assert bench.leftovers() == []


def test_what_is_not_mounted_is_not_found(bench: MountBench) -> None:
    assert "no mount of hybrid at or named mnt" in bench.fail("umount", "mnt", code=4)
    assert "no mount has an id" in bench.fail("umount", "0123", code=4)
    assert "it is proc" in bench.fail("umount", "/proc", code=4)


@pytest.mark.parametrize(
    ("code", "file"), [(OPEN, "hello"), (STAND, ""), (MAP, "hello")], ids=["open", "cwd", "mapped"]
)
def test_a_busy_mount_names_who_holds_it_and_stays(
    bench: MountBench, images: ImageMaker, kind: str, code: str, file: str
) -> None:
    record = mounted(bench, images, kind)
    arguments = (bench.mountpoint / file,) if file else ()
    with holder(code, *arguments, cwd=None if file else bench.mountpoint) as process:
        line = bench.fail("umount", bench.mountpoint, code=11)
        assert f"(pid {process.pid})" in line
        assert "--lazy" in line
        images.check_tree(bench.mountpoint)
        assert bench.state_of(record) == "ready"
    bench.succeed("umount", bench.mountpoint)
    assert bench.leftovers() == []


def test_a_mount_inside_makes_it_busy(bench: MountBench, images: ImageMaker) -> None:
    mounted(bench, images, "ext4")
    inside = bench.mountpoint / "sub"
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    assert f"the mount {inside}" in bench.fail("umount", bench.mountpoint, code=11)
    subprocess.run(["umount", inside], check=True)
    bench.succeed("umount", bench.mountpoint)


def test_a_covered_mount_is_left_alone(bench: MountBench, images: ImageMaker) -> None:
    record = mounted(bench, images, "ext4")
    subprocess.run(["mount", "-t", "tmpfs", "none", bench.mountpoint], check=True)
    assert "covered by another mount (tmpfs" in bench.fail("umount", record["id"], code=11)
    subprocess.run(["umount", bench.mountpoint], check=True)
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", record["id"])


def test_a_lazy_umount_ends_with_the_last_user(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    record = mounted(bench, images, kind)
    blob = images.tree / "sub" / "blob"
    with (bench.mountpoint / "sub" / "blob").open("rb") as file:
        answer = json.loads(bench.succeed("umount", "--lazy", "--json", bench.mountpoint))
        assert answer["ended"] is False
        assert list(bench.mountpoint.iterdir()) == []
        assert bench.state_of(record) == "unmounted"
        assert file.read() == blob.read_bytes()
    bench.assert_clean()


def test_a_lazy_umount_without_users_ends_at_once(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    mounted(bench, images, kind)
    bench.succeed("umount", "--lazy", bench.mountpoint)
    bench.assert_clean()


def test_a_plain_umount_leaves_nothing_behind(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    mounted(bench, images, kind)
    subprocess.run(["umount", bench.mountpoint], check=True)
    bench.assert_clean()


def list_and_umount(bench: MountBench, record: dict[str, Any], state: str) -> None:
    """Both within their time, and clean afterwards."""
    started = time.monotonic()
    assert bench.state_of(record) == state
    bench.succeed("umount", bench.mountpoint)
    assert time.monotonic() - started < ANSWER_SECONDS
    assert bench.leftovers() == []


def test_a_killed_server(bench: MountBench, images: ImageMaker, kind: str) -> None:
    record = mounted(bench, images, kind)
    os.kill(record["pid"], signal.SIGKILL)
    poll_until(lambda: process_state(record["pid"]) in ("", "Z"), "end of the server")
    list_and_umount(bench, record, "dead")


def test_a_stopped_server(bench: MountBench, images: ImageMaker, kind: str) -> None:
    record = mounted(bench, images, kind)
    os.kill(record["pid"], signal.SIGSTOP)
    list_and_umount(bench, record, "stopped")


def test_a_stopped_server_with_readers_in_the_kernel(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    """They are stuck in reads that nobody answers: they make it busy, and --lazy frees them."""
    record = mounted(bench, images, kind)
    os.kill(record["pid"], signal.SIGSTOP)
    with holder(
        "import sys, pathlib; print('ready', flush=True)\n"
        "try: pathlib.Path(sys.argv[1]).read_bytes()\n"
        "except OSError: pass",
        bench.mountpoint / "sub" / "blob",
    ) as reader:
        poll_until(lambda: process_state(reader.pid) == "D", "a read that hangs")
        started = time.monotonic()
        assert f"(pid {reader.pid})" in bench.fail("umount", bench.mountpoint, code=11)
        bench.succeed("umount", "--lazy", bench.mountpoint)
        assert time.monotonic() - started < ANSWER_SECONDS
        assert reader.wait(timeout=5) == 0
    bench.assert_clean()


def test_reads_in_flight_do_not_hold_up_umount(bench: MountBench, images: ImageMaker) -> None:
    """Readahead waits for a server that is stopped, after its reader has gone."""
    record = mounted(bench, images, "ext4")
    with holder(READ_AHEAD, bench.mountpoint / "sub" / "blob") as reader:
        os.kill(record["pid"], signal.SIGSTOP)
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.wait(timeout=5) == 0
    list_and_umount(bench, record, "stopped")


def test_sigterm_takes_the_mount_away_in_order(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    record = mounted(bench, images, kind)
    os.kill(record["pid"], signal.SIGTERM)
    bench.assert_clean()


def test_sigterm_under_a_busy_mount_changes_nothing(bench: MountBench, images: ImageMaker) -> None:
    record = mounted(bench, images, "ext4")
    with (bench.mountpoint / "hello").open():
        os.kill(record["pid"], signal.SIGTERM)
        log = Path(record["log"])
        poll_until(lambda: "is in use by" in log.read_text(), "the refusal in the log")
        images.check_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    assert bench.leftovers() == []


def test_a_mount_held_by_another_namespace_is_said_so(
    bench: MountBench, images: ImageMaker
) -> None:
    record = mounted(bench, images, "ext4")
    command = ["unshare", "--mount", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        line = bench.fail("umount", bench.mountpoint, code=11)
        assert "another mount namespace" in line
        assert bench.state_of(record) == "unmounted"
        process.communicate("\n")
    bench.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_foreground_mount_ends_with_a_signal(
    bench: MountBench, images: ImageMaker, number: signal.Signals
) -> None:
    with foreground(bench, images, "--error-at", "2000000-3000000") as process:
        images_file = bench.mountpoint / "sub" / "blob"
        with pytest.raises(OSError, match="Input/output"):
            images_file.read_bytes()
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "CRC mismatch" in errors  # the server's log goes to our stderr as well
    assert bench.leftovers() == []


def test_a_foreground_mount_ends_with_its_mount(bench: MountBench, images: ImageMaker) -> None:
    with foreground(bench, images) as process:
        bench.succeed("umount", bench.mountpoint)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert bench.leftovers() == []


def test_a_busy_foreground_mount_stays(bench: MountBench, images: ImageMaker) -> None:
    with foreground(bench, images) as process:
        with (bench.mountpoint / "hello").open():
            os.kill(process.pid, signal.SIGTERM)
            assert process.stderr is not None
            poll_until(lambda: "is in use by" in process.stderr.readline(), "the refusal")
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert bench.leftovers() == []


def test_a_foreground_mount_reports_the_death_of_its_server(
    bench: MountBench, images: ImageMaker
) -> None:
    with foreground(bench, images) as process:
        (record,) = bench.list()
        os.kill(record["pid"], signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 10
    assert "died (signal 9)" in errors
    bench.succeed("umount", bench.mountpoint)


@contextmanager
def foreground(
    bench: MountBench, images: ImageMaker, *options: str
) -> Iterator[subprocess.Popen[str]]:
    command = bench.command("mount", "--foreground", images.get("ext4"), bench.mountpoint, *options)
    with subprocess.Popen(
        command,
        env=bench.environment,
        cwd=bench.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        poll_until(lambda: process.stdout.readline() == "}\n", "the printed record")
        yield process
