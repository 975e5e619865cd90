"""Leftovers of real mounts: what is told of them, what ``hybrid gc`` removes, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.mounting import ImageMaker, MountBench, poll_until

from hybrid.block.names import Target, wwn_of
from hybrid.cli.gc import command
from hybrid.fuse.loop import backing_file
from hybrid.mount.leftover import YOUNG_SECONDS, Leftover
from hybrid.mount.leftovers import Scene, find_leftovers, judge_mount
from hybrid.mount.listing import MountStatus
from hybrid.mount.mountinfo import MountEntry, read_mountinfo
from hybrid.mount.open_files import OpenFiles, sees_all
from hybrid.mount.processes import process_state
from hybrid.mount.state import MountRecord, create_record, remove_directory
from hybrid.mount.target_leftovers import find_use


@pytest.fixture(autouse=True)
def _same_state(bench: MountBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_STATE_DIR", str(bench.state))
    monkeypatch.setenv("HYBRID_DATA_DIR", str(bench.directory / "data"))


def is_ours(name: str, text: str) -> bool:
    """The kernel is shared with whatever else runs on this machine."""
    place = os.environ["HYBRID_STATE_DIR"].rpartition("/")[0]
    return not name.startswith("/") or place in text


def collect(code: int = 0) -> list[dict[str, Any]]:
    """``hybrid gc --json``."""
    done = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return [item for item in json.loads(done.stdout) if is_ours(item["name"], item["text"])]


def find() -> list[Leftover]:
    return [left for left in find_leftovers() if is_ours(left.name, left.text)]


def told(part: str = "") -> list[str]:
    """What doctor says of leftovers: kind and whether it is removable."""
    return [
        f"{left.kind} {'removable' if left.remove else 'kept'}"
        for left in find()
        if part in left.text
    ]


needs_all_processes = pytest.mark.skipif(
    not sees_all(), reason="in a container, where not all processes can be seen"
)


def kill(record: dict[str, Any]) -> None:
    os.kill(record["pid"], signal.SIGKILL)
    poll_until(lambda: process_state(record["pid"]) in ("", "Z"), "end of the server")


def make_old(path: Path) -> None:
    then = time.time() - YOUNG_SECONDS - 1
    os.utime(path, (then, then))


def test_nothing_is_left_of_nothing() -> None:
    assert told() == []
    assert collect() == []


def test_what_lives_is_not_touched(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount(images.get("ext4"), bench.mountpoint)
    exposed = bench.mount(images.get("ext4"))
    assert told() == []
    assert collect() == []
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", record["id"])
    bench.succeed("umount", exposed["id"])


@pytest.mark.parametrize("kind", ["ext4", "erofs"])
def test_a_dead_mount_is_for_its_user_to_unmount(
    bench: MountBench, images: ImageMaker, kind: str
) -> None:
    record = bench.mount("--mode", "fuse", images.get(kind), bench.mountpoint)
    kill(record)
    (left,) = find()
    assert f"reads below {bench.mountpoint} fail" in left.text
    assert f"`hybrid umount {record['id']}`" in left.remedy
    assert [item["removed"] for item in collect()] == [False]
    assert bench.state_of(record) == "dead"
    # Once the tree is gone, by whomever, the rest is nobody's.
    subprocess.run(["umount", bench.mountpoint], check=True)
    poll_until(lambda: told() == ["state removable"], "the end of the loop device")
    assert [item["removed"] for item in collect()] == [True]
    assert bench.leftovers() == []


def test_a_dead_file_is_removed_and_said_so(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"))
    kill(record)
    done = CliRunner().invoke(command, [], catch_exceptions=False)
    (line,) = done.output.splitlines()
    assert line.startswith(f"removed state {record['id']}: the server of ext4.img is dead")
    assert done.exit_code == 0
    assert bench.leftovers() == []


def test_a_stopped_server_is_not_touched(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    os.kill(record["pid"], signal.SIGSTOP)
    poll_until(lambda: process_state(record["pid"]) == "T", "the stop of the server")
    started = time.monotonic()
    (item,) = collect()
    assert (item["removable"], item["removed"]) == (False, False)
    assert f"kill -CONT {record['pid']}" in item["remedy"]
    assert time.monotonic() - started < 5
    os.kill(record["pid"], signal.SIGCONT)
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)


def test_a_detached_tree_in_use_is_not_touched(bench: MountBench, images: ImageMaker) -> None:
    bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    with (bench.mountpoint / "hello").open() as file:
        subprocess.run(["umount", "--lazy", bench.mountpoint], check=True)
        assert told("is not mounted any more") == ["mount kept"]
        collect()
        assert file.read() == "hello\n"
    bench.assert_clean()


def test_a_loop_device_that_outlives_its_mount_is_named(
    bench: MountBench, images: ImageMaker
) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    loop = record["loop"]
    with open(loop, "rb"):
        kill(record)
        subprocess.run(["umount", bench.mountpoint], check=True)
        (left,) = find()
        assert f"but {loop} is still used" in left.text
        assert left.remove is None
    poll_until(lambda: not backing_file(Path(loop)), "the end of the loop device")
    collect()
    assert bench.leftovers() == []


def test_the_record_of_a_living_server_is_damaged(bench: MountBench, images: ImageMaker) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    state = bench.state / record["id"] / "state.json"
    good = state.read_text()
    state.write_text("{")
    make_old(state)
    (left,) = find()
    assert f"process {record['pid']} serves this mount" in left.text
    assert [item["removed"] for item in collect()] == [False]
    images.check_tree(bench.mountpoint)
    state.write_text(good)
    bench.succeed("umount", record["id"])


def test_a_mount_that_begins_is_not_taken_for_a_leftover(bench: MountBench) -> None:
    record = create_record("image", "fuse", "", {})
    assert told() == collect() == []
    make_old(record.directory / "state.json")
    assert told() == ["state removable"]
    collect()
    assert list(bench.state.iterdir()) == []


def test_drafts_and_logs_of_failures(bench: MountBench, images: ImageMaker) -> None:
    bench.fail("mount", images.get("ext4"), "--open", "bug", code=70)
    draft = bench.state / ".0123abcd"
    (draft / "fuse").mkdir(parents=True)
    assert told() == ["log removable"]
    make_old(draft)
    assert told() == ["state removable", "log removable"]
    assert [item["removed"] for item in collect()] == [True, True]
    assert list(bench.state.iterdir()) == []


def test_what_cannot_be_removed_is_one_line_and_the_rest_goes(
    bench: MountBench, images: ImageMaker, caplog: pytest.LogCaptureFixture
) -> None:
    bench.fail("mount", images.get("ext4"), "--open", "bug", code=70)
    draft = bench.state / ".0123abcd"
    draft.mkdir()
    (draft / "mine").touch()
    make_old(draft)
    done = CliRunner().invoke(command, [], catch_exceptions=False)
    assert done.exit_code == 10
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"cannot remove {draft}: Directory not empty (there is more in it than hybrid made)"
    ]
    assert [path.name for path in bench.state.iterdir()] == [".0123abcd"]
    (draft / "mine").unlink()
    make_old(draft)
    collect()


@contextmanager
def loop_over(disk: str) -> Iterator[Path]:
    """A loop device of somebody else's making, without autoclear."""
    options = ["--find", "--show", "--read-only"]
    done = subprocess.run(["losetup", *options, disk], capture_output=True, text=True, check=True)
    loop = Path(done.stdout.strip())
    try:
        yield loop
    finally:
        if backing_file(loop):
            subprocess.run(["losetup", "-d", loop], check=True)


@pytest.fixture
def short_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[MountBench]:
    """With a short name: the kernel keeps 63 bytes of that of a detached file."""
    directory = Path(tempfile.mkdtemp())
    made = MountBench(directory)
    monkeypatch.setenv("HYBRID_STATE_DIR", str(made.state))
    try:
        yield made
        assert made.leftovers() == []
    finally:
        made.tear_down()
        shutil.rmtree(directory)


@needs_all_processes
def test_a_dead_loop_device_in_use(short_bench: MountBench, images: ImageMaker) -> None:
    bench = short_bench
    record = bench.mount("--mode", "fuse", images.get("ext4"))
    directory = bench.state / record["id"]
    with loop_over(record["file"]) as loop:
        assert told() == []
        kill(record)
        subprocess.run(["umount", "--lazy", directory / "fuse"], check=True)
        remove_directory(directory)
        assert told(str(loop)) == ["loop removable"]
        with loop.open("rb"):
            (item,) = collect(code=11)
            assert "still in use" in item["error"]
        poll_until(lambda: not backing_file(loop), "the end of the loop device")


@needs_all_processes
def test_a_dead_loop_device_is_cleared(short_bench: MountBench, images: ImageMaker) -> None:
    bench = short_bench
    record = bench.mount("--mode", "fuse", images.get("ext4"))
    with loop_over(record["file"]) as loop:
        kill(record)
        subprocess.run(["umount", "--lazy", bench.state / record["id"] / "fuse"], check=True)
        remove_directory(bench.state / record["id"])
        assert [item["name"] for item in collect()] == [str(loop)]
        assert not backing_file(loop)


def test_a_living_mount_of_another_state_directory(
    bench: MountBench, images: ImageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    monkeypatch.setenv("HYBRID_STATE_DIR", str(bench.directory / "other"))
    assert told() == []
    collect()
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", record["id"])


@needs_all_processes
def test_a_dead_mount_of_another_state_directory_is_left_to_it(
    bench: MountBench, images: ImageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    kill(record)
    monkeypatch.setenv("HYBRID_STATE_DIR", str(bench.directory / "other"))
    kept = find()
    assert sorted(left.kind for left in kept) == ["fuse", "loop"]
    assert all(left.remove is None for left in kept)
    remedy = f"HYBRID_STATE_DIR={bench.state} hybrid umount {record['id']}"
    assert remedy in [left.remedy for left in kept]
    collect()
    monkeypatch.setenv("HYBRID_STATE_DIR", str(bench.state))
    bench.succeed("umount", record["id"])


def test_a_server_that_cannot_be_seen_is_not_taken_for_dead(
    bench: MountBench, images: ImageMaker
) -> None:
    """As of a container that has the state directory, but neither the processes nor the mounts."""
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    script = 'umount -l "$1" "$2"; shift 2; exec "$@"'
    places = [bench.mountpoint, bench.state / record["id"] / "fuse"]
    hidden = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *places]
    os.kill(record["pid"], signal.SIGSTOP)
    done = subprocess.run(
        [*hidden, sys.executable, "-m", "hybrid", "gc", "--json"],
        env=bench.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (item,) = json.loads(done.stdout)
    assert "a process that cannot be seen from here serves this mount" in item["text"]
    assert not item["removed"]
    os.kill(record["pid"], signal.SIGCONT)
    images.check_tree(bench.mountpoint)
    bench.succeed("umount", record["id"])


@needs_all_processes
def test_where_processes_are_hidden_only_records_count(
    bench: MountBench, images: ImageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their servers may live, unseen."""
    record = bench.mount("--mode", "fuse", images.get("ext4"), bench.mountpoint)
    kill(record)
    assert told() == ["mount kept"]
    script = "from hybrid.mount.leftovers import find_leftovers; print(len(find_leftovers()))"
    other = {**bench.environment, "HYBRID_STATE_DIR": str(bench.directory / "other")}
    for prefix, count in (([], 2), (["unshare", "--pid", "--fork", "--mount-proc"], 0)):
        command = [*prefix, sys.executable, "-c", script]
        done = subprocess.run(command, env=other, capture_output=True, text=True, check=True)
        assert int(done.stdout) >= count if count else int(done.stdout) == 0
    bench.succeed("umount", record["id"])


# -- judgements of what this kernel may not have ---------------------------------------------------

RECORD = MountRecord(
    Path("/run/hybrid/0123abcd"),
    "0123abcd",
    image="image",
    mode="tcmu",
    pid=1 << 22,
    pid_start_time=1,
    mountpoint="/mnt",
    device="/dev/sda",
    source="/dev/sda",
    ready=True,
)
EMPTY = Scene([], [], {}, [], OpenFiles())


@pytest.mark.parametrize(
    "entries", [[], [MountEntry(1, "8:0", "/mnt", "ext4", "/dev/sda", "ro")]], ids=["", "mounted"]
)
def test_a_dead_tcmu_mount_can_be_resumed(entries: list[MountEntry]) -> None:
    scene = replace(EMPTY, targets=[Target(RECORD.id, wwn_of(RECORD.id))], entries=entries)
    (left,) = judge_mount(MountStatus(RECORD, "dead", None), scene)
    assert "`hybrid resume 0123abcd`" in left.remedy
    assert "`hybrid umount 0123abcd`" in left.remedy
    assert left.remove is None


def test_a_tcmu_mount_without_its_disk_is_only_a_record() -> None:
    (left,) = judge_mount(MountStatus(RECORD, "dead", None), EMPTY)
    assert left.remove is not None


@pytest.mark.parametrize("state", ["ready", "starting"])
def test_nothing_is_wrong_with(state: str) -> None:
    assert list(judge_mount(MountStatus(RECORD, state, None), EMPTY)) == []


@pytest.mark.parametrize(
    ("files", "use"),
    [
        (OpenFiles(mounted=frozenset({"", "/dev/sda"})), ""),
        (OpenFiles(mounted=frozenset({"/dev/sdzz"})), "mounted"),
        (OpenFiles(devices={"/dev/sdzz": os.getpid()}), f"(pid {os.getpid()})"),
    ],
)
def test_who_uses_a_disk(files: OpenFiles, use: str) -> None:
    """The disk is none of this machine's."""
    found = find_use(Path("/dev/sdzz"), files)
    assert found.endswith(use)
    assert bool(found) is bool(use)


def test_a_disk_that_is_mounted_is_known_by_its_number() -> None:
    """As btrfs and mounts by other names need it; with a disk of this machine."""
    entry = next(entry for entry in read_mountinfo() if entry.source.startswith("/dev/"))
    disk = Path(os.path.realpath(f"/sys/dev/block/{entry.device}")).name
    assert find_use(Path("/dev") / disk, OpenFiles(mounted=frozenset({entry.device}))) == "mounted"
