"""tools/bench: measure, and print one table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from bench.data import Data, prepared_data
from bench.measure import measure
from bench.profiles import show_fuse_server, show_profiles, show_read_path
from bench.small import measure_small
from bench.table import Results, aims, json_results, text_table
from bench.targets import all_targets
from hybrid.errors import HybridError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quick", action="store_true", help="three short rounds: rough figures")
    parser.add_argument("--profile", action="store_true", help="show where time goes, no table")
    return parser.parse_args()


def run() -> None:
    """Run, and give a one-line error when one of the programs that are measured fails."""
    # An exception, so that mounts, loop devices and servers go away with us.
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


def main() -> None:
    arguments = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("bench: loop devices need root: sudo tools/bench")
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 2.5)
    with prepared_data() as data:
        if arguments.profile:
            show_profiles(data)
            return
        results = measure_all(data, rounds, seconds)
        if arguments.json:
            print(json.dumps(json_results(results), indent=2))
            return
        print(text_table(results))
        _explain([aim.title for aim in aims(results) if not aim.met], data)


def _explain(missed: Sequence[str], data: Data) -> None:
    """Show where the time goes that a missed aim is about."""
    if any(title.startswith("(c)") for title in missed):
        print("\nThe read path of (c), alone (more: tools/bench --profile):")
        show_read_path(data, "lz4")
    if any(title.startswith("(b)") for title in missed):
        print("\nThe server of (b):")
        show_fuse_server(data)


def measure_all(data: Data, rounds: int, seconds: float) -> Results:
    with all_targets(data) as targets:
        cells = measure(targets, rounds, seconds)
        peaks = {target.key: target.peak_memory() for target in targets}
    small = measure_small(data, rounds)
    return Results(data, targets, cells, peaks, small, rounds, seconds)


if __name__ == "__main__":
    run()
