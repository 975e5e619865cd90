"""Without the compiled part: one line says what to install."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["hybrid.build.ext4._native"] = None
try:
    import hybrid.build.ext4.layer
except Exception as error:
    print(type(error).__name__, error.exit_code, error)
"""


def test_what_is_missing_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("SystemSupportError 10 this installation of hybrid cannot write")
    assert "apt-get install libext2fs-dev" in done.stdout
    assert done.stdout.count("\n") == 1
