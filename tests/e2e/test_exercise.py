"""The random exerciser (tools/exercise): a short run of it, and that it sees what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "lib"
sys.path.insert(0, str(TOOLS))

from exercise.model import Difference, Model  # noqa: E402

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def exercise(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exercise", *arguments],
        env={**os.environ, "PYTHONPATH": f"{TOOLS}:{TOOLS.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def check_run(mode: str, seed: int, operations: int, seconds: float) -> None:
    arguments = ["--mode", mode, "--seed", str(seed), "--operations", str(operations)]
    done = exercise(*arguments, seconds=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    first, last = done.stdout.splitlines()
    assert first == f"exercise: seed {seed}, mode {mode}"
    # The seed is one that comes to all that is special.
    names = ["crash", "snapshot", "remount", "punch", "truncate", "write_mapped"]
    for name in [*names, "resume"] if mode == "tcmu" else names:
        assert re.search(rf"\b[1-9]\d* {name}\b", last), (name, last)


@needs_root
def test_a_short_run() -> None:
    check_run("fuse", seed=100, operations=60, seconds=60)


@needs_root
@pytest.mark.guest
def test_a_short_run_in_mode_tcmu() -> None:
    check_run("tcmu", seed=100, operations=51, seconds=600)


def model(content: bytes) -> Model:
    made = Model()
    made.write(0, content)
    made.synchronised()
    return made


def test_the_model_does_what_files_do() -> None:
    made = model(b"abcdef")
    made.write(8, b"xy")
    assert made.content == b"abcdef\0\0xy"
    made.zero(1, 2)
    made.truncate(4)
    made.truncate(6)
    made.zero(5, 100)
    assert made.content == b"a\0\0d\0\0"
    made.check_whole(b"a\0\0d\0\0", "read")


def test_a_wrong_byte_is_seen() -> None:
    with pytest.raises(Difference, match="read: 1 of 3 bytes at 2 differ, from 3 on: 5865"):
        model(b"abcdef").check(2, b"cXe", "read")
    with pytest.raises(Difference, match="5 bytes, not 6"):
        model(b"abcdef").check_whole(b"abcde", "read")


def test_after_a_crash_only_what_was_changed_may_differ() -> None:
    made = model(b"abcdef")
    made.write(2, b"XY")
    made.recover(b"ab?def")
    made = model(b"abcdef")
    made.write(2, b"XY")
    with pytest.raises(Difference, match="synchronised before"):
        made.recover(b"abcd?f")
    with pytest.raises(Difference, match="synchronised before"):
        made.recover(b"?bcdef")


def test_after_a_crash_the_size_is_one_that_it_had() -> None:
    for size in (4, 6):
        made = model(b"abcdef")
        made.truncate(4)
        made.recover(b"abcdef"[:size])
    for content in (b"abc", b"abcdefg"):
        made = model(b"abcdef")
        made.truncate(4)
        with pytest.raises(Difference, match="after a crash"):
            made.recover(content)
