"""mountinfo, paths, records and processes: what list and umount know without touching mounts."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.core.bounded import BoundedTask, run_bounded
from hybrid.errors import BusyError, NotFoundError, PermissionNeededError, TimeoutExpiredError
from hybrid.mount.mountinfo import mounts_below, parse_mountinfo, top_mount
from hybrid.mount.paths import find_target, resolve_outside
from hybrid.mount.processes import ProcessIdentity, identify
from hybrid.mount.state import create_record, read_records, remove_directory, state_root

MOUNTINFO = """\
23 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
30 28 7:0 / /mnt/a\\040b ro,relatime shared:1 master:2 - ext4 /dev/loop0 ro,norecovery
31 30 0:40 / /mnt/a\\040b/in ro - tmpfs none rw
32 30 0:41 / /mnt/a\\040bc ro - tmpfs none rw
33 28 0:42 / /mnt/a\\040b ro - fuse.x hybrid:1\\134 ro
"""


def test_mountinfo_is_parsed_with_its_escapes() -> None:
    entries = parse_mountinfo(MOUNTINFO)
    assert [entry.mount_point for entry in entries] == [
        "/proc",
        "/mnt/a b",
        "/mnt/a b/in",
        "/mnt/a bc",
        "/mnt/a b",
    ]
    assert entries[1].device == "7:0"
    assert entries[1].options == "ro,norecovery"
    assert (entries[4].fstype, entries[4].source) == ("fuse.x", "hybrid:1\\")


def test_the_last_mount_on_a_path_is_on_top() -> None:
    entries = parse_mountinfo(MOUNTINFO)
    top = top_mount(entries, "/mnt/a b")
    assert top is not None
    assert top.mount_id == 33
    assert top_mount(entries, "/mnt") is None
    assert [entry.mount_id for entry in mounts_below(entries, "/mnt/a b")] == [31]


class TestResolveOutside:
    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real" / "deep").mkdir(parents=True)
        (tmp_path / "absolute").symlink_to(tmp_path / "real")
        (tmp_path / "relative").symlink_to("absolute/../real/deep")
        (tmp_path / "loop").symlink_to("loop")
        real = f"{tmp_path.resolve()}/real"
        assert resolve_outside(f"{tmp_path}/absolute/deep/", set()) == f"{real}/deep"
        assert resolve_outside(f"{tmp_path}/relative/x", set()) == f"{real}/deep/x"
        assert resolve_outside(f"{tmp_path}/loop", set()).endswith("/loop")
        assert resolve_outside("/", set()) == "/"
        assert resolve_outside("/..", set()) == "/"

    def test_nothing_at_or_below_a_barrier_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "alias").symlink_to("mount")
        barrier = f"{tmp_path}/mount"
        read: list[str] = []
        real = os.readlink
        monkeypatch.setattr(os, "readlink", lambda path: read.append(path) or real(path))
        assert resolve_outside(f"{tmp_path}/alias/in/it", {barrier}) == f"{barrier}/in/it"
        assert f"{tmp_path}/alias" in read
        assert not [path for path in read if path.startswith(barrier)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state"
    monkeypatch.setenv("HYBRID_STATE_DIR", str(path))
    return path


class TestRecords:
    def test_a_record_is_read_as_it_was_saved(self, root: Path) -> None:
        record = create_record("image", "fuse", "why", {})
        record = dataclasses.replace(record, pid=7, loop="/dev/loop3", ready=True, size=512)
        record.save()
        assert read_records() == [record]
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        record.log.touch()
        remove_directory(record.directory)
        assert list(root.iterdir()) == []
        remove_directory(record.directory)  # gone already is fine

    def test_foreign_files_are_never_removed(self, root: Path) -> None:
        record = create_record("image", "fuse", "why", {})
        (record.fuse_directory / "precious").touch()
        with pytest.raises(OSError, match="not empty"):
            remove_directory(record.directory)
        assert (record.fuse_directory / "precious").exists()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', "\0"])
    def test_a_damaged_record_still_has_its_id(self, root: Path, text: str) -> None:
        record = create_record("image", "fuse", "why", {})
        (record.directory / "state.json").write_text(text)
        (damaged,) = read_records()
        assert (damaged.id, damaged.image, damaged.pid) == (record.id, "", 0)
        assert not damaged.server.is_alive()

    def test_a_value_of_a_wrong_type_is_not_taken(self, root: Path) -> None:
        record = dataclasses.replace(create_record("image", "fuse", "why", {}), pid=1)
        record.save()
        path = record.directory / "state.json"
        path.write_text(path.read_text().replace('"pid": 1', '"pid": "1"'))
        (read,) = read_records()
        assert (read.pid, read.image) == (0, "image")

    def test_an_open_directory_is_refused(self, root: Path) -> None:
        root.mkdir(mode=0o750)
        for attempt in (read_records, lambda: create_record("image", "fuse", "why", {})):
            with pytest.raises(PermissionNeededError, match="mode 0750"):
                attempt()

    def test_ids_are_found_by_unique_prefixes(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = iter(["abcd0001", "abcd0002", "12345678"])
        monkeypatch.setattr("hybrid.mount.state.secrets.token_hex", lambda size: next(ids))
        for _ in range(3):
            create_record("image", "fuse", "why", {})
        assert find_target("abcd0002").id == "abcd0002"
        assert find_target("1234").id == "12345678"
        with pytest.raises(NotFoundError, match="2 mounts have an id that starts with abcd"):
            find_target("abcd")
        with pytest.raises(NotFoundError, match="no mount of hybrid at or named 123"):
            find_target("123")


def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRID_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_root() == Path("/run/hybrid")
    monkeypatch.setattr(os, "geteuid", lambda: 5)
    assert state_root() == Path("/run/user/5/hybrid")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert state_root() == Path("/tmp/hybrid-5")


class TestProcesses:
    def test_a_process_is_known_by_its_start(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            identity = identify(child.pid)
            assert identity.is_alive()
            assert not identity.wait_gone(0.05)
            other = ProcessIdentity(child.pid, identity.start_time + 1)
            assert not other.is_alive()
            other.send(signal.SIGKILL)
            assert identity.is_alive()
            identity.send(signal.SIGKILL)
            assert identity.wait_gone(5)
        assert identity.state() == ""
        identity.send(signal.SIGKILL)

    def test_no_process(self) -> None:
        nobody = ProcessIdentity(0, 0)
        assert not nobody.is_alive()
        assert nobody.wait_gone(0)
        with pytest.raises(ProcessLookupError):
            identify(0)


class TestBoundedWork:
    def test_a_result_of_any_size(self) -> None:
        assert run_bounded("work", lambda: ["x" * 100] * 5000, 5) == ["x" * 100] * 5000

    def test_errors_come_back(self) -> None:
        with pytest.raises(FileNotFoundError):
            run_bounded("work", lambda: os.stat("/nothing/here") and 0, 5)
        with pytest.raises(RuntimeError, match="work: ZeroDivisionError"):
            run_bounded("work", lambda: 1 // 0, 5)

    def test_an_error_of_hybrid_comes_back_as_it_was(self) -> None:
        def fail() -> None:
            raise BusyError("in use", hint="wait")

        with pytest.raises(BusyError, match=r"in use \(wait\)"):
            run_bounded("work", fail, 5)

    def test_what_takes_too_long_is_given_up_or_waited_for_again(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        task = BoundedTask("work", lambda: len(fifo.read_bytes()))
        with pytest.raises(TimeoutExpiredError, match="work did not end within"):
            task.wait(0.05)
        fifo.write_bytes(b"x")
        assert task.wait(5) == 1

    def test_the_child_has_no_descriptors_of_ours(self) -> None:
        assert run_bounded("work", lambda: len(os.listdir("/proc/self/fd")), 5) == 5
