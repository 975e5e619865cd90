"""Images as users have them: `hybrid mount --no-mount`, with settings and records of our own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

HYBRID = [sys.executable, "-m", "hybrid"]


@contextlib.contextmanager
def hybrid_state() -> Iterator[dict[str, str]]:
    """Environment for hybrid: no configuration of this machine, a state directory of our own.

    At the end all mounts in it are taken away, those too whose start was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-") as name:
        config, records = Path(name) / "hybrid.json", Path(name) / "state"
        cache = {"cacheType": "file", "cacheDir": str(Path(name) / "cache")}
        config.write_text(json.dumps({"cacheConfig": cache}))
        records.mkdir(mode=0o700)
        environment = {
            **os.environ, "HYBRID_CONFIG": str(config), "HYBRID_STATE_DIR": str(records),
        }  # fmt: skip
        try:
            yield environment
        finally:
            for mount in json.loads(run_hybrid(["list", "--json"], environment)):
                run_hybrid(["umount", mount["id"]], environment)


def start_image(
    config: Path, environment: Mapping[str, str], mode: str, *options: str
) -> tuple[Path, int]:
    """`hybrid mount --no-mount` of an image; the file or block device, and the server's pid."""
    arguments = ["mount", "--mode", mode, "--no-mount", "--json", *options, str(config)]
    mount = json.loads(run_hybrid(arguments, environment))
    return Path(mount["file"]), mount["pid"]


def run_hybrid(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run one command of hybrid; what it printed."""
    return subprocess.run(
        [*HYBRID, *arguments],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ).stdout
