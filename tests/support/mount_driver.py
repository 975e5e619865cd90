"""``hybrid mount`` with a Device made from a raw file instead of an image, for the tests of mounts.

    python -m support.mount_driver mount RAW [MOUNTPOINT] [--foreground] [--mode M] [--writable] ...
    python -m support.mount_driver resume ID

Errors become exit codes through the real ``hybrid.cli.main``. Prints the record as JSON.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
from pathlib import Path
from typing import Any

import click
import trio
from support.crash_storage import RecordingStorage

import hybrid.cli
from hybrid.cli.output import print_json
from hybrid.core.device import Buffer, Device, check_range
from hybrid.core.upper_directory import UpperDirectory
from hybrid.errors import FormatError, StorageFullError
from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.changes import Changes
from hybrid.mount.foreground import supervise
from hybrid.mount.listing import describe_record
from hybrid.mount.origin import OpenDevice
from hybrid.mount.paths import find_target
from hybrid.mount.resume import resume


class RawDevice(Device):
    """A raw file as a Device, with faults: a failing range, a range that hangs, a bug, a crash.

    A flush waits for as long as the file ``hold_flush`` exists, and fails while ``bad_flush`` does.
    While the file ``full`` exists, no write finds space. What is done to the disk is noted, line by
    line, in the file ``trace``. ``hang_at`` hangs for ever, or for as long as the file ``hold``
    exists. A ``remote`` one never answers at once, but in another order after up to ``jitter``
    milliseconds.
    """

    def __init__(self, path: Path, options: dict[str, str], *, writable: bool = False) -> None:
        self.name = f"raw {path.name}"
        self.digest = "sha256:" + "0" * 64
        self.writable = writable
        self._fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size
        self._error_at = _range(options.get("error_at"))
        self._bug_at = _range(options.get("bug_at"))
        self._hang_at = _range(options.get("hang_at"))
        self._hold = Path(options["hold"]) if options.get("hold") else None
        self._hold_flush = Path(options.get("hold_flush") or "/-")
        self._bad_flush = Path(options.get("bad_flush") or "/-")
        self._full = Path(options.get("full") or "/-")
        self._trace = options.get("trace")
        self._jitter = int(options.get("jitter") or 0) / 1000
        self._chance = random.Random(1)
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
            await self._hang()
        await trio.sleep(self._jitter * self._chance.random())
        return self._read(offset, length)

    async def _hang(self) -> None:
        if self._hold is None:
            await trio.sleep_forever()
        while self._hold and self._hold.exists():  # noqa: ASYNC110 - another process removes it
            await trio.sleep(0.02)

    def _read(self, offset: int, length: int) -> bytes:
        self.fetched += length
        return os.pread(self._fd, length, offset)

    def pwrite_nowait(self, offset: int, data: Buffer) -> bool:
        check_range(offset, len(data), self.size, self.name)
        return not self._remote and self._write(offset, data)

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await trio.sleep(self._jitter * self._chance.random())
        self._write(offset, data)

    def _write(self, offset: int, data: Buffer) -> bool:
        if _overlaps(self._error_at, offset, len(data)):
            raise FormatError("the disk below is broken", offset=offset)
        if self._full.exists():
            raise StorageFullError("no space left for raw", hint="make some")
        self._note(f"write {offset} {len(data)}")
        return os.pwrite(self._fd, data, offset) == len(data)

    async def discard(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size, self.name)
        self._note(f"discard {offset} {length}")
        end = offset + length
        while offset < end:
            try:
                offset = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError:
                return  # nothing but holes from here on
            size = min(1 << 20, end - offset)
            if size > 0:
                os.pwrite(self._fd, bytes(size), offset)
            offset += size

    def _note(self, line: str) -> None:
        if self._trace:
            with open(self._trace, "a") as file:
                file.write(f"{line}\n")

    async def flush(self) -> None:
        while self._hold_flush.exists():  # noqa: ASYNC110 - another process removes it
            await trio.sleep(0.02)
        if self._bad_flush.exists():
            raise StorageFullError("no space left for the index", hint="make some")
        self._note("flush")
        os.fdatasync(self._fd)

    def identity(self) -> str:
        return f"{self.name} {self.size}"

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
@click.option("--writable", is_flag=True)
@click.option(
    "--record", default="", help="RAW is a directory of changes; what is done there goes to a file"
)
@click.option("--error-at", help="FIRST-END: byte range whose reads fail")
@click.option("--bug-at", help="byte range whose reads raise KeyError")
@click.option("--hang-at", help="byte range whose reads never end")
@click.option("--hold", help="a file: they end when it is removed")
@click.option("--hold-flush", help="a file: flushes end when it is removed")
@click.option("--bad-flush", help="a file: while it exists, flushes fail")
@click.option("--jitter", help="milliseconds that answers of --remote may take")
@click.option("--open", "opening", default="", help="fail | die | hang: how opening goes wrong")
def mount_raw(
    raw: Path,
    mountpoint: Path | None,
    foreground: bool,
    mode: str,
    opening: str,
    writable: bool,
    record: str,
    **faults: str,
) -> None:
    origin = {
        "raw": str(raw),
        "opening": opening,
        "writable": writable,
        "faults": faults,
        "record": record,
    }
    made = attach(
        MountRequest(
            raw.name,
            opener(origin),
            origin,
            mountpoint,
            mode,
            foreground,
            changes=Changes() if writable else None,
        )
    )
    print_json(describe_record(made, "ready"))
    sys.stdout.flush()
    if foreground:
        supervise(made)


@click.command("resume")
@click.argument("target")
def resume_raw(target: str) -> None:
    record = resume(find_target(target), lambda record: opener(record.origin))
    print_json(describe_record(record, "ready"))


def opener(origin: dict[str, Any]) -> OpenDevice:
    """How to open the raw file again, from what a record stores."""

    async def open_device() -> Device:
        match origin["opening"]:
            case "fail":
                raise FormatError("layer 2 is damaged", hint="fetch it again", offset=7)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise KeyError("a bug while opening")
            case "hang":
                await trio.sleep_forever()
        if origin.get("record"):
            return await open_recorded(Path(origin["raw"]), Path(origin["record"]))
        return RawDevice(Path(origin["raw"]), origin["faults"], writable=origin["writable"])

    return open_device


async def open_recorded(directory: Path, record: Path) -> Device:
    """The disk of a directory of changes; at its end, all that was done there is in ``record``."""
    storage = RecordingStorage(directory)
    disk = await UpperDirectory(directory, storage).open(None, "recorded")
    close = disk.aclose

    async def close_and_tell() -> None:
        try:
            await close()
        finally:
            record.write_bytes(pickle.dumps(storage.log))  # noqa: ASYNC240

    disk.aclose = close_and_tell  # type: ignore[method-assign]
    return disk


class _Verbs(hybrid.cli.LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        ours = {"mount": mount_raw, "resume": resume_raw}
        return ours.get(cmd_name) or super().get_command(ctx, cmd_name)


if __name__ == "__main__":
    hybrid.cli.cli.__class__ = _Verbs
    hybrid.cli.main()
