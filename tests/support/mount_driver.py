"""``hybrid mount`` with a Device made from a raw file instead of an image, for the tests of mounts.

    python -m support.mount_driver RAW [MOUNTPOINT] [--foreground] [--mode M] [--error-at A-B] ...

Errors become exit codes through the real ``hybrid.cli.main``. Prints the record as JSON.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click
import trio

import hybrid.cli
from hybrid.cli.output import print_json
from hybrid.core.device import Buffer, Device, check_range
from hybrid.errors import FormatError
from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.foreground import supervise
from hybrid.mount.listing import describe_record


class RawDevice(Device):
    """A raw file as a Device, with faults: a failing range, a range that hangs, a bug, a crash."""

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        self.name = f"raw {path.name}"
        self.digest = "sha256:" + "0" * 64
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size
        self._error_at = _range(options.get("error_at"))
        self._bug_at = _range(options.get("bug_at"))
        self._hang_at = _range(options.get("hang_at"))
        self._remote = bool(options.get("remote"))
        self.fetched = 0

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        check_range(offset, length, self.size, self.name)
        if _overlaps(self._error_at, offset, length):
            raise FormatError(f"layer 1 block {offset // 4096}: CRC mismatch", offset=offset)
        if _overlaps(self._bug_at, offset, length):
            raise KeyError("a bug")
        if self._remote or _overlaps(self._hang_at, offset, length):
            return None
        return self._read(offset, length)

    async def pread(self, offset: int, length: int) -> Buffer:
        if _overlaps(self._hang_at, offset, length):
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self._read(offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        self.fetched += length
        return os.pread(self._fd, length, offset)

    def stats(self) -> dict[str, int]:
        return {"bytes_total": self.size, "bytes_fetched": self.fetched}

    async def aclose(self) -> None:
        os.close(self._fd)


def _range(text: str | None) -> range:
    first, _, end = (text or "0-0").partition("-")
    return range(int(first), int(end))


def _overlaps(bad: range, offset: int, length: int) -> bool:
    return offset < bad.stop and bad.start < offset + length


@click.command("mount")
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--foreground", is_flag=True)
@click.option("--mode", default="auto")
@click.option("--remote", is_flag=True)
@click.option("--error-at", help="FIRST-END: byte range whose reads fail")
@click.option("--bug-at", help="byte range whose reads raise KeyError")
@click.option("--hang-at", help="byte range whose reads never end")
@click.option("--open", "opening", default="", help="fail | die | hang: how opening goes wrong")
def command(
    raw: Path, mountpoint: Path | None, foreground: bool, mode: str, opening: str, **faults: str
) -> None:
    async def open_device() -> Device:
        if opening == "fail":
            raise FormatError("layer 2 is damaged", hint="fetch it again", offset=7)
        if opening == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if opening == "bug":
            raise KeyError("a bug while opening")
        if opening == "hang":
            await trio.sleep_forever()
        return RawDevice(raw, faults)

    record = attach(MountRequest(raw.name, open_device, mountpoint, mode, foreground))
    print_json(describe_record(record, "ready"))
    sys.stdout.flush()
    if foreground:
        supervise(record)


class _Verbs(hybrid.cli.LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command if cmd_name == "mount" else super().get_command(ctx, cmd_name)


if __name__ == "__main__":
    hybrid.cli.cli.__class__ = _Verbs
    hybrid.cli.main()
