"""A bench for real mounts: commands in a state directory of their own, and a check that every
test leaves nothing behind. Images are made by the mkfs programs, independently of hybrid.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.target_traces import remove_by_force, traces

from hybrid.mount.mountinfo import MountEntry, read_mountinfo

TESTS = Path(__file__).parent.parent
MIB = 1 << 20
PATIENCE = 6.0 if os.environ.get("HYBRID_TEST_GUEST") == "1" else 1.0
"""How many times longer than on a common machine anything may take: the guest is emulated."""


def poll_until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Bounded polling on a real condition; ``seconds`` on a common machine."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {what}"
        time.sleep(0.01)


class MountBench:
    """Runs ``hybrid`` (its ``mount`` takes raw files, see mount_driver) and cleans up after it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.environment = {
            **os.environ,
            "HYBRID_STATE_DIR": str(self.state),
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        }
        self._records: dict[str, dict[str, Any]] = {}
        self._old_traces = traces()

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "support.mount_driver", *map(str, arguments)]

    def run(self, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """Run one command. 30 s are the bound of everything on a common machine."""
        done = subprocess.run(
            [*prefix, *self.command(*arguments)],
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=30 * PATIENCE,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def fail(self, *arguments: object, code: int, prefix: tuple[str, ...] = ()) -> str:
        """Run a command that has to fail with ``code``; its one line on stderr."""
        done = self.run(*arguments, prefix=prefix)
        assert done.returncode == code, done
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line

    def succeed(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mount(self, *arguments: object) -> dict[str, Any]:
        """``hybrid mount ARGUMENTS``; the record."""
        record: dict[str, Any] = json.loads(self.succeed("mount", *arguments))
        self._records[record["id"]] = record
        return record

    def list(self) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = json.loads(self.succeed("list", "--json"))
        return mounts

    def state_of(self, record: dict[str, Any]) -> str:
        return next((found["state"] for found in self.list() if found["id"] == record["id"]), "")

    def entries(self) -> list[MountEntry]:
        """Mounts below the bench's directory."""
        prefix = f"{self.directory}/"
        return [entry for entry in read_mountinfo() if entry.mount_point.startswith(prefix)]

    def leftovers(self) -> list[str]:
        """What a finished mount must not leave: mounts, disks, loop devices, servers, state."""
        found = [f"mount {entry.mount_point}" for entry in self.entries()]
        found += [f"loop {name}" for name in self._loops()]
        found += [f"server {pid}" for pid in self._servers()]
        found += [f"target {name}" for name in self._traces()]
        if self.state.exists():
            found += [f"state {path.name}" for path in self.state.iterdir()]
        return found

    def assert_clean(self) -> None:
        poll_until(lambda: not self.leftovers(), f"clean up of {self.leftovers()}", 5.0)

    def tear_down(self) -> None:
        """By force, so that one failed test does not spoil the machine."""
        for pid in self._servers():
            os.kill(pid, signal.SIGKILL)
        for entry in reversed(self.entries()):
            subprocess.run(["umount", "-l", entry.mount_point], check=False)
        for name in self._loops():
            subprocess.run(["losetup", "-d", f"/dev/{name}"], check=False)
        if self._traces():
            remove_by_force(self._traces())
        poll_until(lambda: not (self.entries() or self._loops() or self._servers()), "tear down")

    def _traces(self) -> set[str]:
        return traces() - self._old_traces

    def _loops(self) -> list[str]:
        names = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if str(self.directory) in path.read_text():
                    names.append(path.parts[3])
            except OSError:
                continue
        return names

    def _servers(self) -> list[int]:
        """Live processes with our state directory in their environment, or a log in it as stdout.

        A server that was forked off a test shows only the second.
        """
        mark = f"HYBRID_STATE_DIR={self.state}".encode()
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                stdout = os.readlink(process / "fd/1")
            except OSError:
                continue
            if mark in environment or stdout.startswith(f"{self.state}/"):
                found.append(int(process.name))
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MountBench]:
    """A MountBench. After the test nothing of it may be left, or the test fails."""
    made = MountBench(tmp_path)
    try:
        yield made
        leftovers = made.leftovers()
        if leftovers:
            made.assert_clean()
    finally:
        made.tear_down()


class ImageMaker:
    """Makes each kind of image once, from one tree of files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.tree = directory / "tree"
        (self.tree / "sub").mkdir(parents=True)
        (self.tree / "hello").write_text("hello\n")
        (self.tree / "sub" / "blob").write_bytes(random.Random(7).randbytes(3 * MIB + 123))
        (self.tree / "link").symlink_to("hello")

    def get(self, kind: str) -> Path:
        """The raw image ``ext4``, ``ext4-dirty``, ``ext4-nojournal``, ``ext3``, ``ext2``, ``xfs``,
        ``erofs``, ``squashfs``, ``btrfs`` or ``none`` (random bytes).
        """
        path = self._directory / f"{kind}.img"
        if not path.exists():
            getattr(self, f"_make_{kind.replace('-', '_')}")(path)
        return path

    def _make_ext(self, path: Path, *options: str) -> None:
        _sized(path, 24)
        _call("mkfs.ext4", "-q", "-F", *options, "-d", self.tree, path)

    def _make_ext4(self, path: Path) -> None:
        self._make_ext(path)

    def _make_ext4_nojournal(self, path: Path) -> None:
        self._make_ext(path, "-O", "^has_journal")

    def _make_ext3(self, path: Path) -> None:
        self._make_ext(path, "-t", "ext3")

    def _make_ext2(self, path: Path) -> None:
        self._make_ext(path, "-t", "ext2")

    def _make_ext4_dirty(self, path: Path) -> None:
        """A copy of a mounted ext4, so that its journal really holds something."""
        live = path.with_suffix(".live")
        self._make_ext(live)
        with _loop_mounted(live) as mountpoint:
            (mountpoint / "late").write_text("late\n")
            os.sync()
            shutil.copy(live, path)
        live.unlink()

    def _make_xfs(self, path: Path) -> None:
        _sized(path, 300)
        _call("mkfs.xfs", "-q", "-f", path)
        with _loop_mounted(path) as mountpoint:
            shutil.copytree(self.tree, mountpoint, symlinks=True, dirs_exist_ok=True)

    def _make_btrfs(self, path: Path) -> None:
        _sized(path, 128)
        _call("mkfs.btrfs", "-q", "--rootdir", self.tree, path)

    def _make_erofs(self, path: Path) -> None:
        _call("mkfs.erofs", "--quiet", path, self.tree)

    def _make_squashfs(self, path: Path) -> None:
        _call("mksquashfs", self.tree, path, "-quiet", "-no-progress", "-noappend")

    def _make_none(self, path: Path) -> None:
        path.write_bytes(random.Random(3).randbytes(4 * MIB))

    def check_tree(self, mountpoint: Path) -> None:
        """The files are those that were put in."""
        assert (mountpoint / "hello").read_text() == "hello\n"
        assert (mountpoint / "link").readlink() == Path("hello")
        blob = Path("sub") / "blob"
        assert (mountpoint / blob).read_bytes() == (self.tree / blob).read_bytes()


class _loop_mounted:
    """Mounts an image read-write with mount(8), to change it."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._mountpoint = image.with_suffix(".mnt")

    def __enter__(self) -> Path:
        self._mountpoint.mkdir()
        _call("mount", "-o", "loop", self._image, self._mountpoint)
        return self._mountpoint

    def __exit__(self, *_: object) -> None:
        _call("umount", self._mountpoint)
        self._mountpoint.rmdir()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageMaker:
    return ImageMaker(tmp_path_factory.mktemp("images"))


def private_dev(*nodes: str) -> tuple[str, ...]:
    """A command prefix: a mount namespace whose /dev holds only ``null`` and ``nodes``."""
    copies = " ".join(shlex.quote(f"/dev/{name}") for name in ("null", *nodes))
    script = (
        "d=$(mktemp -d) && mount -t tmpfs none $d && cp -a " + copies + " $d/ && "
        'mount --move $d /dev && rmdir $d && exec "$@"'
    )
    return ("unshare", "--mount", "sh", "-c", script, "sh")


def _sized(path: Path, mebibytes: int) -> None:
    path.touch()
    os.truncate(path, mebibytes * MIB)


def _call(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
