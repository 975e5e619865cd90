"""`hybrid zfile`, `hybrid layer` and `hybrid inspect`, run as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import golden, golden_image
from support.builders import build_lsmt

from hybrid.errors import (
    ConfigError,
    FormatError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
    UsageError,
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybrid", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def succeed(*arguments: object) -> str:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fail(code: int, *arguments: object) -> str:
    """The one line on stderr of a command that must fail with this exit code."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    line = done.stderr.removeprefix("hybrid: ")
    assert line != done.stderr
    assert line.count("\n") == 1
    return line


def path(name: str) -> Path:
    return golden.tree() / name


def test_help_names_every_verb() -> None:
    text = succeed("--help")
    for verb in ("mount", "umount", "list", "inspect", "zfile", "layer"):
        assert f"\n  {verb} " in text
        assert "Usage:" in succeed(verb, "--help")


@pytest.mark.parametrize("name", ["text1m.lz4-4k.zfile", "text1m.zstd-64k.tar.zfile"])
def test_zfile_info(name: str) -> None:
    found = json.loads(succeed("zfile", "info", "--json", path(f"zfile/{name}")))
    assert found["original_size"] == 1 << 20
    assert found["wrapper"] == ("tar" if ".tar." in name else "none")
    assert f"{found['algorithm']}-{found['block_size'] // 1024}k" in name
    assert found["algorithm"] in succeed("zfile", "info", path(f"zfile/{name}"))


def test_zfile_verify() -> None:
    name = path("zfile/mixed300000.zstd-32k.tar.zfile")
    assert "10 blocks are good" in succeed("zfile", "verify", name)
    assert json.loads(succeed("zfile", "verify", "--json", name))["damaged"] == []
    line = fail(FormatError.exit_code, "zfile", "verify", path("bad/zf-data-flip.zf"))
    assert "1 of 49 blocks are damaged: 0" in line


def test_zfile_unpack(tmp_path: Path) -> None:
    name, plain = path("zfile/text1m.lz4-4k.tar.zfile"), path("zfile/plain/text1m").read_bytes()
    succeed("zfile", "unpack", name, "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == plain
    command = [sys.executable, "-m", "hybrid", "zfile", "unpack", str(name)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == plain


def test_failed_unpack_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    fail(FormatError.exit_code, "zfile", "unpack", path("bad/zf-data-flip.zf"), "-o", target)
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["home", "out"]


@pytest.mark.parametrize("kind", ["config", "layers"])
def test_layer_dump(tmp_path: Path, kind: str) -> None:
    stack = {
        "config": [path("lsmt/e.config.json")],
        "layers": [path(f"lsmt/e{number}.commit") for number in range(5)],
    }[kind]
    raw = tmp_path / "e.raw"
    succeed("layer", "dump", *stack, "-o", raw)
    expected = golden.row_of("lsmt", "e.mix")["raw_sha256"]
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == expected


def test_layer_dump_is_sparse(tmp_path: Path) -> None:
    raw = tmp_path / "img3.raw"
    succeed("layer", "dump", path("img/img3.config.json"), "-o", raw)
    status = raw.stat()
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 < 8 << 20
    with raw.open("rb") as file:
        assert (
            hashlib.file_digest(file, "sha256").hexdigest()
            == (golden.row_of("img", "img3")["raw_sha256"])
        )


def test_layer_info() -> None:
    found = json.loads(succeed("layer", "info", "--json", path("img/img3.config.json")))
    uuids = [(layer["uuid"], layer["parent_uuid"]) for layer in found["layers"]]
    assert [uuid[:8] for uuid, _ in uuids] == ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC"]
    assert [parent for _, parent in uuids] == [None, uuids[0][0], uuids[1][0]]
    assert found["merged"]["segments"] == 22
    text = succeed("layer", "info", path("lsmt/a.commit"), "--segments")
    assert "commit-message" in text
    assert "\n34 2 21 1 0\n" in text


def test_inspect(tmp_path: Path) -> None:
    name = golden_image.layout(tmp_path / "layout")
    found = json.loads(succeed("inspect", name, "--json"))
    assert [layer["compression"] for layer in found["layers"]] == ["lz4"] * 3
    assert found["virtual_size"] == 1 << 30
    assert found["fstype"] == "ext4"
    assert "1.0 GiB" in succeed("inspect", name)


def test_errors_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"lowers": {}}')
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(5000))
    assert "no such file" in fail(NotFoundError.exit_code, "zfile", "info", missing)
    assert "no such file" in fail(NotFoundError.exit_code, "layer", "info", missing)
    assert "lowers" in fail(ConfigError.exit_code, "inspect", wrong)
    assert "no overlaybd layer" in fail(UnsupportedError.exit_code, "layer", "info", plain)
    assert "truncated" in fail(
        FormatError.exit_code, "layer", "info", path("bad/zf-header-only.zf")
    )
    assert "config" in fail(
        UsageError.exit_code, "layer", "info", path("lsmt/e.config.json"), plain
    )
    assert "directory" in fail(
        NotFoundError.exit_code, "zfile", "unpack", path("zfile/b1.lz4-4k.zfile"),
        "-o", tmp_path / "no" / "out",
    )  # fmt: skip


def test_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["unpack"], ["info"]):
            command = [sys.executable, "-m", "hybrid", "zfile", *arguments]
            done = subprocess.run(
                [*command, str(path("zfile/text1m.lz4-4k.zfile"))],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == StorageFullError.exit_code
            assert done.stderr == "hybrid: cannot write to stdout: No space left on device\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    try:
        line = fail(
            StorageFullError.exit_code, "zfile", "unpack", path("zfile/text1m.lz4-4k.zfile"),
            "-o", disk / "out",
        )  # fmt: skip
        assert "No space left" in line
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_is_a_regular_file(tmp_path: Path) -> None:
    source = path("zfile/text1m.lz4-4k.zfile")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target in (fifo, tmp_path, Path("/dev/null")):
        assert "not a regular file" in fail(
            UsageError.exit_code, "zfile", "unpack", source, "-o", target
        )
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    succeed("zfile", "unpack", source, "-o", link)
    assert link.is_symlink()
    assert real.stat().st_size == 1 << 20


def test_closed_streams() -> None:
    command = f"{sys.executable} -m hybrid zfile info {path('zfile/b1.lz4-4k.zfile')}"
    for redirect in ("2>&-", "<&-", "<&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {redirect}"], capture_output=True, text=True)
        assert done.returncode == 0, redirect
        assert "original size" in done.stdout
    done = subprocess.run(["sh", "-c", f"{command} | head -n 1"], capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_foreign_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    tag = b"\x1b]0;owned\x07\nlayer 1: fake"
    layer = tmp_path / "layer"
    layer.write_bytes(build_lsmt([], 1 << 20, user_tag=tag))
    text = succeed("layer", "info", layer)
    assert "\x1b" not in text
    assert "\nlayer 1: fake" not in text
    assert r"\x1b]0;owned\x07\nlayer 1: fake" in text


def test_verify_of_a_file_full_of_damage(tmp_path: Path) -> None:
    data = bytearray(path("zfile/text1m.lz4-4k.zfile").read_bytes())
    for position in range(1000, len(data) - 10_000, 500):
        data[position] ^= 1
    file = tmp_path / "damaged"
    file.write_bytes(data)
    done = run("zfile", "verify", "--json", file)
    assert done.returncode == FormatError.exit_code
    found = json.loads(done.stdout)
    assert found["blocks"] == 256
    assert 100 < found["damaged_blocks"] == len(found["damaged"]) <= 256


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    done = run("-v", "inspect", f"oci:{tmp_path}")
    assert done.returncode == NotFoundError.exit_code
    assert "Traceback" in done.stderr
