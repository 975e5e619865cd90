"""A disk that another process has attached for us (``lending``), in a trio run.

It is the KernelDisk of conversions (``hybrid.build.convert.kernel_disk``).
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from hybrid.build.convert.result import ConvertedLayer
from hybrid.errors import (
    FormatError,
    HybridError,
    StorageFullError,
    SystemSupportError,
    decode_error,
)
from hybrid.mount.detached import Setting, mount_detached
from hybrid.mount.lending import LenderEnd

_SETTINGS: dict[str, tuple[Setting, ...]] = {
    # Nothing has to outlive a crash: it is all on the disk when the file system is unmounted. The
    # inode tables of an empty disk are zeros already.
    "ext4": ("noinit_itable", "nobarrier"),
    "xfs": ("nouuid",),
    "btrfs": ("nobarrier", ("commit", "600")),
}
_LINE_BYTES = 1 << 16
_NO_ROOM_BYTES = 16 << 20
"""Free bytes with which a directory counts as full."""


class LentDisk:
    """See KernelDisk."""

    def __init__(self, lender: LenderEnd) -> None:
        self.directory = lender.directory
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(lender.channel))
        self._device = Path()
        self._descriptor = -1
        self._received = b""
        self._orders = 0

    async def attach(self, lowers: Sequence[Path] | Sequence[ConvertedLayer]) -> None:
        files = [os.fspath(lower) for lower in lowers if isinstance(lower, Path)]
        blobs = [(x.digest, x.size) for x in lowers if isinstance(x, ConvertedLayer)]
        answer = await self._order("attach", {"files": files} if files else {"blobs": blobs})
        self._device = Path(answer["device"])
        # It hears of what cannot be written from now on.
        self._descriptor = os.open(self._device, os.O_RDONLY | os.O_CLOEXEC)

    @asynccontextmanager
    async def mounted(self, fs: str) -> AsyncIterator[int]:
        settings = _SETTINGS[fs]
        try:
            mount = await trio.to_thread.run_sync(mount_detached, self._device, fs, settings)
        except (FormatError, SystemSupportError) as error:
            raise await self._reason(error) from error
        try:
            try:
                yield mount.root
                await trio.to_thread.run_sync(mount.write_back)
                await trio.to_thread.run_sync(mount.trim)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(mount.close)
            await trio.to_thread.run_sync(os.fsync, self._descriptor)
        except (OSError, SystemSupportError) as error:
            raise await self._reason(error) from error

    async def seal(self) -> Path:
        return Path((await self._order("seal", True))["sealed"])

    async def detach(self) -> None:
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        with trio.CancelScope(shield=True):
            await self._order("detach", True)

    async def _reason(self, error: OSError | FormatError | SystemSupportError) -> HybridError:
        """What the kernel calls an input/output error, the server of the disk knows more of."""
        said = ""
        with trio.CancelScope(shield=True), suppress(HybridError):
            said = (await self._order("trouble", True))["said"]
        space = os.statvfs(self.directory)
        if space.f_bavail * space.f_frsize < _NO_ROOM_BYTES:
            return StorageFullError(
                f"cannot write to the disk in {self.directory}: no space left",
                hint="TMPDIR names another directory for temporary files",
            )
        if isinstance(error, FormatError) and not said:
            return error
        if isinstance(error, FormatError | SystemSupportError):
            message = f"{error.message}: {said}" if said else error.message
            return SystemSupportError(message, hint=error.hint)
        text = error.strerror or str(error)
        return SystemSupportError(f"cannot write to {self._device}: {said or text}")

    async def _order(self, name: str, value: object) -> dict[str, Any]:
        self._orders += 1
        number = self._orders
        line = json.dumps({name: value, "number": number}).encode() + b"\n"
        # Whoever gives the next order wants to find this one carried out.
        with trio.CancelScope(shield=True):
            try:
                await self._stream.send_all(line)
                while (answer := await self._next_answer())["number"] != number:
                    pass  # to an order whose giver was interrupted
            except trio.BrokenResourceError:
                raise SystemSupportError(
                    "the process that lends the disk died",
                    hint=f"`hybrid list` shows whether a disk is left; {self.directory} may be",
                ) from None
        if "error" in answer:
            raise decode_error(answer["error"])
        return answer

    async def _next_answer(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            part = await self._stream.receive_some(_LINE_BYTES)
            if not part:
                raise trio.BrokenResourceError
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
