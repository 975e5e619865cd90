"""tools/exercise: random work on a file in a writable mount; every read is compared."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.images import hybrid_state

from exercise.image import Image
from exercise.model import Difference
from exercise.run import Exercise


def main() -> None:
    arguments = _parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("exercise: mounting needs root: sudo tools/exercise")
    # An exception, so that mounts and servers go away with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"exercise: seed {seed}, mode {arguments.mode}", flush=True)
    with _place(arguments.keep) as directory, hybrid_state() as environment:
        work = Exercise(Image(directory, arguments.mode, environment), seed)
        try:
            work.run(_limit(arguments.operations, arguments.seconds))
        except (Difference, OSError, subprocess.CalledProcessError) as error:
            print(_report(work, seed, error), file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("exercise: interrupted; no difference so far", file=sys.stderr)
            sys.exit(130)
    done = ", ".join(f"{count} {name}" for name, count in sorted(work.counts.items()))
    print(f"exercise: {work.counts.total()} operations, no difference: {done}")


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="tools/exercise", description=__doc__)
    options.add_argument("--seed", type=int, help="decides what is done; default: a random one")
    limits = options.add_mutually_exclusive_group()
    limits.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    limits.add_argument("--operations", type=int, help="how many, instead of how long")
    options.add_argument("--mode", choices=("fuse", "tcmu"), default="fuse")
    options.add_argument(
        "--keep", type=Path, metavar="DIR", help="image and upper go to this new directory and stay"
    )
    return options


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="hybrid-exercise-") as name:
        yield Path(name)


def _limit(operations: int | None, seconds: float) -> Callable[[int], bool]:
    """Whether to go on after so many operations."""
    if operations is not None:
        return lambda done: done < operations
    deadline = time.monotonic() + seconds
    return lambda _: time.monotonic() < deadline


def _report(work: Exercise, seed: int, error: Exception) -> str:
    said = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        output = error.stderr or error.stdout or ""
        said = f"`{shlex.join(error.cmd)}` failed with {error.returncode} {output}".strip()
    return "\n".join(
        ["exercise: the last operations were", *work.last, f"exercise: seed {seed}: {said}"]
    )


if __name__ == "__main__":
    main()
