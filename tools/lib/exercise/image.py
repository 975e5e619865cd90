"""The image: an ext4 made for the run, mounted to be written to, unmounted, crashed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench.images import HYBRID
from layers import differences, write_config, write_layer

_DISK_SIZE = 96 << 20
_PATIENCE = 120.0


class Image:
    """One image and its upper, at most one mount of it at a time. Everything is in ``directory``.

    Raises CalledProcessError when a command fails.
    """

    def __init__(self, directory: Path, mode: str, environment: Mapping[str, str]) -> None:
        self.mode = mode
        self.mountpoint = directory / "mnt"
        self._upper = directory / "upper"
        self._config = directory / "config.v1.json"
        self._environment = environment
        self._server = 0
        self.mountpoint.mkdir(exist_ok=True)
        self._make(directory / "disk.raw", directory / "layer.tar")

    def _make(self, raw: Path, layer: Path) -> None:
        with raw.open("wb") as file:
            file.truncate(_DISK_SIZE)
        _call("mkfs.ext4", "-q", "-F", "-b", "4096", str(raw))
        write_config(self._config, [write_layer(layer, _DISK_SIZE, differences(raw, None))])

    def mount(self) -> None:
        self._mount(str(self.mountpoint))

    def _mount(self, *place: str) -> Path:
        words = ["mount", "--json", "--rw", "--mode", self.mode, "--upper", str(self._upper)]
        if not place:
            words.append("--no-mount")
        shown = self._hybrid(*words, str(self._config), *place)
        record = json.loads(shown)
        self._server = record["pid"]
        return Path(record["file"])

    def unmount(self) -> None:
        self._hybrid("umount", str(self.mountpoint))

    def snapshot(self) -> None:
        self._hybrid("snapshot", str(self.mountpoint))

    def kill(self) -> None:
        """kill -9 of the server; when this returns it is gone."""
        os.kill(self._server, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while _is_alive(self._server):
            if time.monotonic() > deadline:
                raise TimeoutError(f"server {self._server} outlives kill -9")
            time.sleep(0.01)

    def resume(self) -> None:
        """Mode tcmu: a new server for the disk that is still there."""
        self._hybrid("resume", str(self.mountpoint))
        (record,) = json.loads(self._hybrid("list", "--json"))
        self._server = record["pid"]

    def give_up(self) -> None:
        """Unmount without the server, which loses what was not written yet."""
        self._hybrid("umount", "--lazy", str(self.mountpoint))
        deadline = time.monotonic() + _PATIENCE
        while json.loads(self._hybrid("list", "--json")):
            if time.monotonic() > deadline:
                raise TimeoutError("umount --lazy leaves the mount there")
            time.sleep(0.01)

    def check_file_system(self) -> None:
        """e2fsck of the unmounted image; raises CalledProcessError if it finds anything."""
        disk = self._mount()
        try:
            _call("e2fsck", "-f", "-n", str(disk))
        finally:
            (record,) = json.loads(self._hybrid("list", "--json"))
            self._hybrid("umount", record["id"])

    def _hybrid(self, *words: str) -> str:
        # Not run_hybrid: what is said about servers that were killed matters on failure only.
        return subprocess.run(
            [*HYBRID, *words],
            check=True,
            env=self._environment,
            capture_output=True,
            text=True,
            start_new_session=True,
        ).stdout


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
