"""ext4 file systems in raw files, made, filled, looked at and damaged by e2fsprogs, unmounted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

MIB = 1 << 20


def make(path: Path, options: str = "", size: str = "64M", *, kind: str = "ext4") -> Path:
    """A new file system; the same options give the same bytes."""
    seed = ["-U", "01234567-89ab-4cde-8123-456789abcdef"]
    extended = "hash_seed=01234567-89ab-4cde-8123-456789abcdef,lazy_itable_init=1"
    run("mke2fs", "-q", "-F", "-t", kind, *seed, "-E", extended, *options.split(), path, size)
    return path


def fill(path: Path, *commands: str) -> None:
    """Run commands of debugfs that change the file system."""
    script = "\n".join(commands)
    done = subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", str(path)],
        input=script, capture_output=True, text=True, check=True,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    assert not errors, errors


def free_sectors(path: Path) -> set[tuple[int, int]]:
    """Ranges of sectors that dumpe2fs calls free, group by group."""
    text = run("dumpe2fs", path)
    block_size = int(re.findall(r"^Block size: +(\d+)$", text, re.M)[0])
    found = set()
    for line in re.findall(r"^  Free blocks: (.*)$", text, re.M):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
            start, end = int(first), int(last or first) + 1
            found.add((start * block_size // 512, end * block_size // 512))
    return found


def check(path: Path) -> None:
    """e2fsck finds nothing."""
    run("e2fsck", "-fn", path)


def judge(path: Path) -> str:
    """What e2fsck says, but for the name of the file."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, errors="replace")
    return done.stdout.replace(str(path), "")


def copy_tree(path: Path) -> Path:
    """Files, directories and symbolic links of a file system, copied to a directory beside it."""
    target = path.with_name(f"{path.name}.tree")
    target.mkdir()
    run("debugfs", "-R", f"rdump / {target}", path)
    return target


def tree(path: Path) -> dict[str, str]:
    """What debugfs says of every file: its path, and inode, mode, owner, group, name and size."""
    found: dict[str, str] = {}
    level = ["/"]
    while level:
        script = "".join(f'ls -p "{name}"\n' for name in level)
        done = subprocess.run(
            ["debugfs", "-f", "/dev/stdin", path], input=script, capture_output=True, text=True,
            errors="surrogateescape", check=True,
        )  # fmt: skip
        # One process for all directories of a depth; it repeats each command before its answer.
        answers = done.stdout.split("debugfs: ls -p ")[1:]
        assert len(answers) == len(level)
        below = []
        for directory, answer in zip(level, answers, strict=True):
            for line in answer.splitlines()[1:]:
                fields = line.split("/")
                if len(fields) < 7 or fields[5] in ("", ".", ".."):
                    continue
                place = f"{directory.rstrip('/')}/{fields[5]}"
                found[place] = line
                if fields[2].startswith("04"):
                    below.append(place)
        level = below
    return found


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr)
    return done.stdout
