"""A command of hybrid, and at the end the most memory that it has had, on stderr.

A module of its own, since what the benchmark imports is not to count for the command.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hybrid.cli import main


def _peak_memory() -> int:
    """Bytes. (What getrusage says is inherited from the process that has started this one.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    finally:
        print(_peak_memory(), file=sys.stderr)
