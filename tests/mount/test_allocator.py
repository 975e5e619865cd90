"""What a read used is kept for the next one."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import resource, sys
from hybrid.mount.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def read():
    parts = [b"x" * 100_000 for _ in range(10)]
    return b"".join(parts)
for _ in range(5):
    read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    read()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> int:
    """Pages that the kernel had to clear for 100 reads of 1 MB."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, argument], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_reads_take_no_new_pages() -> None:
    assert faults("leave") > 1000
    assert faults("keep") < 100
