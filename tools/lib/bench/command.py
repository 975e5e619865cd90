"""What both benchmarks do alike as commands."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable

from hybrid.errors import HybridError

_QUIET_LOAD = 0.7


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both have."""
    made = argparse.ArgumentParser(prog="tools/bench", description=description)
    made.add_argument("--json", action="store_true", help="print JSON instead of the table")
    made.add_argument("--quick", action="store_true", help="three short rounds: rough figures")
    made.add_argument("--profile", action="store_true", help="show where time goes, no table")
    return made


def warn_if_busy() -> None:
    """Say so, if other programs take CPU time that the benchmark needs."""
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD:
        print(
            f"bench: this machine is busy (load {load:.1f}): figures will be low", file=sys.stderr
        )


def run(main: Callable[[], None]) -> None:
    """Run, and give a one-line error when one of the programs that are measured fails."""
    # An exception, so that mounts, disks and servers go away with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except subprocess.CalledProcessError as error:
        said = f": {error.stderr.strip()}" if error.stderr else ""
        sys.exit(f"bench: `{shlex.join(error.cmd)}` failed with {error.returncode}{said}")
    except HybridError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
