"""tools/bench: measure, and print one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bench.applying import measure_applying, text_of
from bench.codec import codec_table, measure_codec
from bench.command import parser, run, warn_if_busy
from bench.data import Data, kept_data, prepared_data
from bench.guest import run_in_guest
from bench.measure import measure
from bench.profiles import show_fuse_server, show_profiles, show_read_path
from bench.small import measure_small
from bench.table import Results, aims, json_results, text_table
from bench.targets import all_targets
from bench.writes.__main__ import main as write_main


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--commit", action="store_true", help="changes that become layers, against lz4 and zstd"
    )
    options.add_argument(
        "--guest", action="store_true",
        help="compare TCMU with FUSE, in a guest whose kernel has both",
    )  # fmt: skip
    options.add_argument(
        "--codec", action="store_true", help="blocks alone: Python against the compiled functions"
    )
    options.add_argument(
        "--apply", action="store_true", help="tar layers applied to ext4, against `tar x`"
    )
    options.add_argument(
        "--convert", action="store_true", help="whole images converted, against `tar x` and lz4"
    )
    options.add_argument(
        "--write",
        action="store_true",
        help="writing to an image, against a raw file; [--directory DIR]",
    )
    arguments, rest = options.parse_known_args()
    if rest and not arguments.write:
        options.error(f"unrecognized arguments: {' '.join(rest)}")
    warn_if_busy()
    if arguments.write:
        words = [word for word in sys.argv[1:] if word not in ("--guest", "--write")]
        if arguments.guest:
            run_in_guest(words, "bench.writes")
        write_main(words)
        return
    if arguments.commit:
        from bench.commit import show_commit  # it runs itself as a program, too

        show_commit(3 if arguments.quick else 5, arguments.json)
        return
    if arguments.guest:
        run_in_guest([word for word in sys.argv[1:] if word != "--guest"])
    if arguments.codec:
        _measure_codec(3 if arguments.quick else 5, arguments.json)
        return
    if os.geteuid() != 0:
        sys.exit("bench: loop devices need root: sudo tools/bench")
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 2.5)
    if arguments.convert:
        from bench.converting import show_converting  # it runs itself as a program, too

        show_converting(3 if arguments.quick else 5, arguments.json)
        return
    if arguments.apply:
        rows = measure_applying(rounds)
        print(json.dumps(rows, indent=2) if arguments.json else text_of(rows))
        return
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


def _measure_codec(rounds: int, as_json: bool) -> None:
    rows = measure_codec(kept_data() / "disk.raw", rounds)
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else codec_table(rows))


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
    run(main)
