"""Feed: the bytes of a blob, from the task that fetches them to the thread that expands them.

The task may run ahead: a little in memory, more in a nameless file. What is in the file is counted
against a RunAhead, which all feeds of a conversion share. What is on this machine already is read
by the thread itself: each hop from thread to thread costs as much as a piece.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import trio

from hybrid.build.contract import Advance, no_advance
from hybrid.build.convert.cores import Cores
from hybrid.build.convert.pipe import StoppedError
from hybrid.core.byte_stream import BlobContent, ByteStream
from hybrid.core.device import Buffer

MEMORY_BYTES = 4 << 20
"""What a feed keeps in memory."""


class RunAhead:
    """Room for what was fetched and is not needed yet: ``limit`` bytes in files in a directory."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self.limit = limit
        self.used = 0


class Feed:
    """One task puts, one thread gets. ``ahead`` None: nothing is kept on disk."""

    def __init__(self, cores: Cores, ahead: RunAhead | None, advance: Advance = no_advance) -> None:
        self._cores = cores
        self._ahead = ahead
        self._advance = advance
        self._items: deque[Buffer | tuple[int, int]] = deque()
        self._in_memory = 0
        self._on_disk = 0
        self._written = 0
        self._file: IO[bytes] | None = None
        self._change = threading.Condition()
        self._ended = False
        self._stopped = False
        self._is_full = False
        self._local: ByteStream | None = None
        self._is_reading = False
        self._room = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    async def fill(self, content: BlobContent) -> None:
        """Fetch a blob from beginning to end; its streams check it. Raises what they raise.

        If this fails the thread fails too. If the thread has stopped, this ends without an error:
        the thread has the reason.
        """
        try:
            async with await content.open() as stream:
                if stream.local:
                    await self._lend(stream)
                    return
                while piece := await stream.read():
                    await self._put(piece)
            self._finish(stopped=False)
        except StoppedError:
            return
        except BaseException:
            self._finish(stopped=True)
            raise

    def read(self, size: int) -> Buffer:
        """For the thread: the next bytes, ``b""`` at the end of a blob that is as it should be.

        May give more than ``size`` bytes. Raises StoppedError.
        """
        with self._change:
            ready = self._is_ready()
        if not ready:
            with self._cores.rest(), self._change:
                while not self._is_ready():
                    self._change.wait()
        with self._change:
            local = self._local
            self._is_reading = local is not None
            taken = self._take() if local is None else (b"", 0)
        if local is not None:
            return self._read_local(local)
        piece, on_disk = taken
        self._token.run_sync_soon(self._after, len(piece), on_disk)
        return piece

    def stop(self) -> None:
        """For the thread, when it fails: the task need not go on. May be called twice."""
        self._finish(stopped=True)
        self._token.run_sync_soon(self._wake)

    def close(self) -> None:
        """For the thread: it is through with it. Gives the space on disk back."""
        with self._change:
            self._stopped = True
            self._local = None
            if self._file is not None:
                self._file.close()
        self._token.run_sync_soon(self._wake)

    # -- inner -----------------------------------------------------------------------------------

    def _is_ready(self) -> bool:
        return bool(self._items) or self._local is not None or self._ended or self._stopped

    def _finish(self, *, stopped: bool) -> None:
        with self._change:
            if stopped:
                self._stopped = True
            else:
                self._ended = True
            self._local = None
            self._change.notify_all()

    async def _lend(self, stream: ByteStream) -> None:
        """Let the thread read it, to its end or until one of both gives up."""
        with self._change:
            if not self._stopped:
                self._local = stream
            self._change.notify_all()
        try:
            await self._until(lambda: self._local is None)
        finally:
            self._finish(stopped=not self._ended)
            # It may be inside, and the caller closes the stream.
            with trio.CancelScope(shield=True):
                await self._until(lambda: not self._is_reading)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            self._room = trio.Event()
            if condition():
                return
            await self._room.wait()

    def _read_local(self, stream: ByteStream) -> Buffer:
        piece: Buffer = b""
        ended = False
        try:
            piece = stream.read_local()
            ended = not piece
        finally:
            with self._change:
                self._is_reading = False
                self._ended = ended
                if not piece:
                    self._local = None
            self._token.run_sync_soon(self._after, len(piece), 0)
        return piece

    async def _put(self, piece: Buffer) -> None:
        while True:
            if self._stopped:
                raise StoppedError
            self._room = trio.Event()
            if self._in_memory < MEMORY_BYTES and not self._on_disk:
                self._append(piece, len(piece), 0)
                return
            ahead = self._ahead
            if ahead is not None and not self._is_full and ahead.used + len(piece) <= ahead.limit:
                ahead.used += len(piece)
                if await trio.to_thread.run_sync(self._spill, piece, ahead.directory):
                    return
                ahead.used -= len(piece)
            await self._room.wait()

    def _append(self, item: Buffer | tuple[int, int], memory: int, disk: int) -> None:
        with self._change:
            self._items.append(item)
            self._in_memory += memory
            self._on_disk += disk
            self._change.notify_all()

    def _spill(self, piece: Buffer, directory: Path) -> bool:
        """In a thread: False if the disk is full, which is no failure: then nothing runs ahead."""
        try:
            # With the lock all along: the other side may close the file.
            with self._change:
                if self._stopped:
                    return False
                if self._file is None:
                    self._file = TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
                if not self._on_disk:
                    self._file.truncate(0)
                    self._written = 0
                view, at = memoryview(piece), self._written
                while view:
                    count = os.pwrite(self._file.fileno(), view, at)
                    view, at = view[count:], at + count
                self._append((self._written, len(piece)), 0, len(piece))
                self._written = at
        except OSError:
            self._is_full = True
            return False
        return True

    def _take(self) -> tuple[Buffer, int]:
        """The next piece, and how many bytes on disk it leaves free."""
        if self._stopped:
            raise StoppedError
        if not self._items:
            return b"", 0
        item = self._items.popleft()
        if not isinstance(item, tuple):
            self._in_memory -= len(item)
            return item, 0
        offset, length = item
        assert self._file is not None
        piece = os.pread(self._file.fileno(), length, offset)
        if len(piece) != length:
            raise OSError(f"{length} bytes at {offset} of a temporary file are gone")
        self._on_disk -= length
        return piece, length

    def _after(self, count: int, on_disk: int) -> None:
        """In the thread of trio: there is room again."""
        if self._ahead is not None:
            self._ahead.used -= on_disk
        self._advance(count)
        self._wake()

    def _wake(self) -> None:
        # The event that is waited for now, which only the thread of trio can tell.
        self._room.set()
