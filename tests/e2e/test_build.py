"""``hybrid build`` as a user runs it: the mounted image is compared with the directory."""

from __future__ import annotations

import array
import contextlib
import fcntl
import gzip
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard
from support.archives import archive, member
from support.commands import fail, run, spawn, succeed, succeed_json
from support.ext4_disks import Tree, check, needs_root, tree_of
from support.mounting import poll_until
from support.registry import RealRegistry

from hybrid.build.one_layer.tree import TreeArchive
from hybrid.errors import (
    EXIT_INTERRUPTED,
    FormatError,
    NotFoundError,
    PermissionNeededError,
    StorageFullError,
    UnsupportedError,
    UsageError,
)

SIZE = ("--size", "1G")
NOBODY = 65534
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff10000600ffffffff20000400ffffffff")
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
both = pytest.mark.parametrize("fs", ["ext4", "erofs"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A cache of this test alone, for root too. Call it for a new one."""
    settings = tmp_path / "hybrid.json"
    place = {"cacheType": "file", "cacheDir": str(tmp_path / "cache")}
    settings.write_text(json.dumps({"cacheConfig": place}))
    monkeypatch.setenv("HYBRID_CONFIG", str(settings))
    return lambda: shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    fill(path)
    return path


def fill(root: Path) -> None:
    """What an ordinary user can have."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"\x7fELF tool" * 300_000)
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/also")
    (root / "bin").symlink_to("usr/bin")
    os.mkfifo(root / "fifo", 0o620)
    for number in range(300):
        (root / f"many-{number}").write_text("x" * number)
    (root / ("n" * 250)).write_text("long")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("no UTF-8")
    with (root / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"data")
        file.truncate(9_000_000)
    os.setxattr(root / "many-1", "user.note", b"kept")
    os.setxattr(root / "many-2", "system.posix_acl_access", ACL)
    os.setxattr(root / "usr", "system.posix_acl_default", ACL)
    (root / "usr").chmod(0o2751)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(root, ns=(0, 1_500_000_000_000_000_001))


def build(*arguments: object) -> Any:
    return succeed_json("build", *SIZE, *arguments)


def layers_of(result: dict[str, Any], field: str = "digest") -> list[str]:
    (image,) = result["images"]
    return [layer[field] for layer in image["layers"]]


def config_of(reference: str) -> Any:
    done = subprocess.run(
        ["skopeo", "inspect", "--config", "--tls-verify=false", reference],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def mounted_tree(reference: str, tmp_path: Path) -> Tree:
    """Through the FUSE front end, with the command that users have."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir(exist_ok=True)
    environment = os.environ | {"HYBRID_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "hybrid"]
    subprocess.run([*command, "mount", "--mode", "fuse", reference, mountpoint], check=True,
                   env=environment, stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        return tree_of(mountpoint)
    finally:
        subprocess.run([*command, "umount", mountpoint], check=True, env=environment)


def assert_same(found: Tree, expected: Tree) -> None:
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert found[path] == row, path


@pytest.fixture
def user() -> Iterator[tuple[list[str], Path]]:
    """A command line in front of ``hybrid``, for an ordinary user, and his home."""
    home = Path(tempfile.mkdtemp(prefix="hybrid-user-"))
    try:
        os.chown(home, NOBODY, NOBODY)
        command = [
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "-i",
            f"HOME={home}", f"TMPDIR={home}", f"PATH={os.environ['PATH']}",
            sys.executable, "-m", "hybrid",
        ]  # fmt: skip
        if subprocess.run([*command, "--version"], capture_output=True, cwd="/").returncode:
            pytest.skip("an ordinary user cannot read this checkout")
        yield command, home
    finally:
        shutil.rmtree(home)


# -- What comes out ------------------------------------------------------------------------------


@needs_root
@both
def test_an_ordinary_user(user: tuple[list[str], Path], tmp_path: Path, fs: str) -> None:
    command, home = user
    source = home / "source"
    source.mkdir()
    fill(source)
    for path in (source, *source.rglob("*")):
        status = path.lstat()
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(status.st_mode))  # chown takes setuid away
    target = f"oci:{home}/target:v1"
    done = subprocess.run(
        [*command, "build", "--fs", fs, source, target], capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(mounted_tree(done.stdout.strip(), tmp_path), tree_of(source))
    assert set(os.listdir(home)) == {"source", "target", ".cache"}
    # Root makes the same of it.
    assert (
        build("--fs", fs, "--size", "64G", source, f"oci:{tmp_path}/root:v1")["digest"]
        == (done.stdout.strip().partition("@")[2])
    )


@needs_root
@both
def test_what_only_root_has(source: Path, tmp_path: Path, fs: str) -> None:
    os.mknod(source / "char", stat.S_IFCHR | 0o666, os.makedev(300, 70000))
    os.mknod(source / "block", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    os.chown(source / "char", 3_000_000, 4_000_000)
    os.setxattr(source / "many-3", "security.capability", CAPABILITY)
    expected = tree_of(source)
    result = build("--fs", fs, source, f"oci:{tmp_path}/target:v1")
    assert_same(mounted_tree(result["reference"], tmp_path), expected)
    owned = build("--fs", fs, "--owner", "5:6", source, f"oci:{tmp_path}/target:v2")
    for row in expected.values():
        row["owner"] = (5, 6)
    assert_same(mounted_tree(owned["reference"], tmp_path), expected)


def test_the_disks_are_sound(source: Path, tmp_path: Path) -> None:
    result = build(source, f"oci:{tmp_path}/target:v1")
    blobs = [tmp_path / "target/blobs/sha256" / digest[7:] for digest in layers_of(result)]
    assert len(blobs) == 2
    succeed("layer", "dump", *blobs, "-o", tmp_path / "disk")
    check(tmp_path / "disk")
    result = build("--fs", "erofs", source, f"oci:{tmp_path}/target:v1")
    (digest,) = layers_of(result)
    succeed("layer", "dump", tmp_path / "target/blobs/sha256" / digest[7:], "-o", tmp_path / "disk")
    subprocess.run(["fsck.erofs", tmp_path / "disk"], check=True, capture_output=True)


@both
def test_the_same_directory_gives_the_same_digests(
    source: Path, tmp_path: Path, cache: Callable[[], None], fs: str
) -> None:
    with RealRegistry() as server:
        name = f"{server.host}/app"
        first = build("--fs", fs, source, f"{name}:v1")
        assert first["layers"]["reused"] == 0
        again = build("--fs", fs, "--threads", 3, source, f"{name}:v2")
        assert again["layers"]["converted"] == 0
        cache()
        anew = build("--fs", fs, source, f"oci:{tmp_path}/target:v1")
        assert anew["layers"]["reused"] == 0
        assert first["digest"] == again["digest"] == anew["digest"]
        # The empty file system is there already, and has only to be written over.
        (source / "new").touch()
        changed = build("--fs", fs, source, f"{name}:v3")
        assert layers_of(changed, "how") == ([] if fs == "erofs" else ["reused"]) + ["converted"]
        assert config_of(f"docker://{name}:v3")["rootfs"]["diff_ids"] == layers_of(changed)


def test_what_the_config_says(source: Path, tmp_path: Path) -> None:
    build(
        source, f"oci:{tmp_path}/target:v1", "--platform", "linux/arm64/v8",
        "--entrypoint", '["/bin/tool", "a b"]', "--cmd", "-c 'd e'", "--env", "A=1", "--env", "B=",
        "--workdir", "/usr", "--user", "7:8", "--label", "org.example=\u00fc",
    )  # fmt: skip
    config = config_of(f"oci:{tmp_path}/target:v1")
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    assert config["config"] == {
        "User": "7:8", "Env": ["A=1", "B="], "Entrypoint": ["/bin/tool", "a b"],
        "Cmd": ["-c", "d e"], "WorkingDir": "/usr", "Labels": {"org.example": "\u00fc"},
    }  # fmt: skip
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == 2


# -- Archives ------------------------------------------------------------------------------------


def packed(root: Path) -> bytes:
    return b"".join(TreeArchive(root).pieces())


def test_archives_and_pipes(source: Path, tmp_path: Path, cache: Callable[[], None]) -> None:
    data = packed(source)
    expected = build(source, f"oci:{tmp_path}/target:v1")
    for number, stored in enumerate((data, gzip.compress(data), zstandard.compress(data))):
        cache()
        (tmp_path / "file.tar").write_bytes(stored)
        result = build(tmp_path / "file.tar", f"oci:{tmp_path}/target{number}:v1")
        assert result["digest"] == expected["digest"]
        process = spawn("build", *SIZE, "-", f"oci:{tmp_path}/piped{number}:v1", "--json",
                        stdin=subprocess.PIPE, text=False)  # fmt: skip
        output, errors = process.communicate(stored, timeout=60)
        assert (process.returncode, errors) == (0, b"")
        assert json.loads(output)["digest"] == expected["digest"]
    with (tmp_path / "file.tar").open("rb") as file:
        process = spawn("build", *SIZE, "-", f"oci:{tmp_path}/redirected:v1", stdin=file)
        output, _ = process.communicate(timeout=60)
    assert output.strip().partition("@")[2] == expected["digest"]


# -- When it fails -------------------------------------------------------------------------------


def refuse(code: int, target: Path, *arguments: object) -> str:
    """Nothing has the name, and the one line on stderr is returned."""
    line = fail(code, "build", *SIZE, *arguments, f"oci:{target}:v1")
    assert not (target / "index.json").exists()
    return line


def test_what_cannot_be_built(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    line = refuse(NotFoundError.exit_code, target, tmp_path / "none")
    assert "hybrid convert" in line
    assert "neither" in refuse(UnsupportedError.exit_code, target, source / "fifo")
    refuse(UsageError.exit_code, source / "target", source)
    assert not (source / "target").exists()
    file = tmp_path / "file"
    file.write_bytes(b"no tar at all" * 100)
    assert f"{file}: entry at byte 0" in refuse(FormatError.exit_code, target, file)
    refuse(UsageError.exit_code, target, "--owner", "0:0", file)
    for owner in ("0", "a:b", "0:4294967295", "-1:0"):
        refuse(UsageError.exit_code, target, "--owner", owner, source)
    for option in (("--env", "A"), ("--workdir", "x"), ("--cmd", "'"), ("--platform", "x")):
        refuse(UsageError.exit_code, target, *option, source)
    (source / "big").write_bytes(Random(1).randbytes(9 << 20))
    line = refuse(StorageFullError.exit_code, target, "--size", "8M", source)
    assert "--size" in line
    fail(UsageError.exit_code, "build", source, "docker-archive:x")
    (source / ".wh.many-1").touch()
    assert ".wh.many-1" in refuse(UnsupportedError.exit_code, target, source)


@needs_root
def test_what_the_user_cannot_read(user: tuple[list[str], Path], source: Path) -> None:
    command, home = user
    shutil.copytree(source / "usr", home / "source")
    (home / "source").chmod(0o755)
    (home / "source/secret").touch(mode=0o600)
    done = subprocess.run(
        [*command, "build", home / "source", f"oci:{home}/target:v1"],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == PermissionNeededError.exit_code
    assert done.stderr.count("\n") == 1
    assert f"cannot read {home}/source/secret: Permission denied" in done.stderr


def test_what_is_left_out_is_said(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    done = run("build", *SIZE, source, f"oci:{tmp_path}/target:v1")
    assert (done.returncode, done.stderr) == (0, "hybrid: sockets are left out: socket\n")


@pytest.mark.parametrize("data", [b"", archive(member(b"f"))[:700]], ids=["nothing", "half"])
def test_interrupted_while_it_waits_for_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    process = spawn("-v", "build", "-", f"oci:{tmp_path}/target:v1", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.buffer.write(data)  # type: ignore[attr-defined]
        process.stdin.flush()
        # It has a nameless file, and has taken all that is in the pipe.
        poll_until(lambda: has_open(process.pid, scratch), "the nameless file")
        poll_until(lambda: not waiting_in(process.stdin), "reading")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == EXIT_INTERRUPTED
    assert "interrupted" in errors
    assert not list(scratch.iterdir())
    assert not (tmp_path / "target/index.json").exists()


def has_open(pid: int, directory: Path) -> bool:
    """Whether a process has a file in a directory open."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith(f"{directory}/"):
                return True
    return False


def waiting_in(pipe: Any) -> int:
    """Bytes in a pipe that nobody has read."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
