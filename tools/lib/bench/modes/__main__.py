"""tools/bench --guest: compare TCMU with FUSE; on this machine, whose kernel must have both."""

from __future__ import annotations

import json
import os
import sys

from bench.command import parser, run
from bench.data import Data, prepared_data
from bench.modes.measure import measure
from bench.modes.profiles import explain, show_profiles
from bench.modes.table import Results, aims, json_results, text_table
from bench.modes.targets import all_targets
from hybrid.block import names


def main() -> None:
    arguments = parser(__doc__).parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: block devices need root")
    if not names.ROOT.is_dir():
        sys.exit(f"bench: this kernel has no SCSI target ({names.ROOT}): tools/bench --guest")
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 2.5)
    with prepared_data(["lz4"], with_disk=False) as data:
        if arguments.profile:
            show_profiles(data)
            return
        results = _measure_all(data, rounds, seconds)
        if arguments.json:
            print(json.dumps(json_results(results), indent=2))
            return
        print(text_table(results), flush=True)
        explain([aim.title for aim in aims(results) if not aim.met], data)


def _measure_all(data: Data, rounds: int, seconds: float) -> Results:
    with all_targets(data) as targets:
        cells = measure(targets, rounds, seconds)
        peaks = {target.key: target.peak_memory() for target in targets}
    return Results(data, targets, cells, peaks, rounds, seconds)


if __name__ == "__main__":
    run(main)
