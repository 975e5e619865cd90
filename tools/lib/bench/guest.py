"""The benchmark of both modes, in a guest of tools/vm: for machines whose kernel has no TCMU."""

from __future__ import annotations

import compileall
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.data import kept_data

_LIBRARY = Path(__file__).resolve().parents[1]
_VM = _LIBRARY.parent / "vm"
_SECONDS = 2400
"""Enough for a busy machine; ten minutes are usual."""
_PASSED_ON = ("XDG_CACHE_HOME",)


def run_in_guest(arguments: Sequence[str], program: str = "bench.modes") -> NoReturn:
    """Become tools/vm, which runs ``python -m PROGRAM ARGUMENTS``."""
    data = kept_data()
    # Python is slow in the guest, and what it compiles there is lost.
    compileall.compile_dir(_LIBRARY, quiet=2)
    command = shlex.join(
        ["env", f"PYTHONPATH={_LIBRARY}", sys.executable, "-m", program, *arguments]
    )
    # Shared, since the guest sees no directories below /tmp and the like.
    options = ["--timeout", str(_SECONDS), "--out", str(data)]
    for name in _PASSED_ON:
        options += ["--env", name]
    sys.stdout.flush()
    os.execv(_VM, [str(_VM), *options, command])
