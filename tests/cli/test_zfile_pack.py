"""`hybrid zfile pack`: from files and pipes, and what becomes of it when it is interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from support import golden
from support.builders import parse_tar, parse_zfile
from support.commands import fail, run, spawn, succeed, succeed_json
from support.mounting import poll_until

from hybrid.errors import FormatError, NotFoundError, UsageError

TEXT = "zfile/plain/text1m"


@pytest.mark.parametrize("compress", ["lz4", "zstd"])
@pytest.mark.parametrize("block_size", ["4k", "32k"])
@pytest.mark.parametrize("tar", [True, False])
def test_pack(compress: str, block_size: str, tar: bool, tmp_path: Path) -> None:
    source, out = golden.tree() / TEXT, tmp_path / "out"
    options = ["--compress", compress, "--block-size", block_size, *(["--tar"] if tar else [])]
    told = succeed_json("zfile", "pack", source, "-o", out, *options)
    blob = out.read_bytes()
    assert told["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert (told["size"], told["original_size"]) == (len(blob), 1 << 20)
    parsed = parse_zfile(parse_tar(blob).payload if tar else blob)
    assert parsed.plain == source.read_bytes()
    assert parsed.header["flags"] == 0x1B, "readers need no second request"
    assert "good" in succeed("zfile", "verify", out)
    succeed("zfile", "unpack", out, "-o", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    for threads in (1, 3):
        words = succeed("zfile", "pack", source, "-o", out, *options, "--threads", threads).split()
        assert words == [told["digest"], str(told["size"])], "whatever the number of threads"


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 300_000])
def test_pipes_fill_blocks(size: int, tmp_path: Path) -> None:
    """Short reads make no short blocks, which would make everything behind them wrong."""
    content = random.Random(size).randbytes(size)
    with spawn(
        "zfile", "pack", "-o", tmp_path / "out", "--compress", "zstd",
        stdin=subprocess.PIPE, bufsize=0, text=False,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        for start in range(0, size, 1000):
            process.stdin.write(content[start : start + 1000])
        process.stdin.close()
        assert process.wait(30) == 0
    assert parse_zfile((tmp_path / "out").read_bytes()).plain == content


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with spawn("zfile", "pack", "-o", tmp_path / "out", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("x" * 100_000)
        process.stdin.flush()
        try:
            poll_until(lambda: has_open(process.pid, tmp_path), "the work has begun")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, said.strip()) == (130, "hybrid: interrupted")
    assert os.listdir(tmp_path) == ["home"]


def has_open(pid: int, directory: Path) -> bool:
    """Whether a process has a file below the directory open."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith(f"{directory}/"):
                return True
    return False


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "always compressed" in fail(
        UsageError.exit_code, "zfile", "pack", golden.tree() / TEXT, "-o", out, "--compress", "none"
    )
    fail(NotFoundError.exit_code, "zfile", "pack", tmp_path / "no", "-o", out)
    fail(FormatError.exit_code, "zfile", "pack", tmp_path, "-o", out)
    assert not out.exists()
    done = run("zfile", "pack", golden.tree() / TEXT, "-o", out, "--block-size", "64k")
    assert "32k is safe" in done.stderr


@pytest.mark.parametrize("how", ["--threads 0", "--block-size 5k", "--compress gzip", ""])
def test_wrong_options(how: str, tmp_path: Path) -> None:
    words = [*how.split(), *(["-o", "x"] if how else [])]
    assert run("zfile", "pack", golden.tree() / TEXT, *words).returncode == 2
