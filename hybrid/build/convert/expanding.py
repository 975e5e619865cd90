"""Decompression in a thread of its own, and the digest of what comes out of it, in the next one:
so the two share the work more evenly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import trio

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.feed import Feed
from hybrid.build.convert.options import SourceLayer
from hybrid.build.convert.pipe import Pipe, StoppedError, reason
from hybrid.build.convert.shares import Shares
from hybrid.build.tar.decompress import open_expander
from hybrid.build.tar.window import CHUNK
from hybrid.core.device import Buffer
from hybrid.errors import FormatError

T = TypeVar("T")

AHEAD_BYTES = 24 << 20
"""On their way to the thread that applies them. So many that the next layer is well on its way when
the one below is applied: of gzip, expanding takes longest."""
FEW_BYTES = 4 << 20
"""Where there is one core, nothing is gained by more."""


class Expanding:
    """A layer on its way from its Feed to whoever applies it: two threads."""

    def __init__(
        self, layer: SourceLayer, name: str, feed: Feed, cores: Cores, shares: Shares
    ) -> None:
        self.layer = layer
        self.name = name
        self.pipe = Pipe(cores, AHEAD_BYTES if cores.count > 1 else FEW_BYTES)
        self._feed = feed
        self._cores = cores
        self._shares = shares
        self._digest = hashlib.sha256()
        self._size = 0
        self._is_checked = False

    async def expand(self) -> None:
        """A task: expand in a thread, as far ahead as the pipe has room.

        Raises what ``run`` raises. If it was stopped, whoever did that has the reason.
        """
        try:
            await self._in_thread(self.run)
        except StoppedError:
            return
        finally:
            self._feed.close()

    async def feed_to(self, apply: Callable[[Expanding], T]) -> T:
        """Call ``apply``, which reads from this, in a thread. Raises what it raises."""
        return await self._in_thread(lambda: apply(self))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Where one side fails, or is cancelled, the other must not wait for it, nor it for the
        other: threads cannot be cancelled, so they are told.

        The thread is waited for in a task of its own: Ctrl-C is heard only where the main task can
        be interrupted."""
        done = False
        results: list[T] = []

        async def watch() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not done:
                    self.stop()

        async def work() -> None:
            nonlocal done
            results.append(await trio.to_thread.run_sync(function))
            done = True
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise reason(group) from None
        finally:
            if not done:
                self.stop()
        return results[0]

    def stop(self) -> None:
        """Let both threads end."""
        self.pipe.stop()
        self._feed.stop()

    def run(self) -> None:
        """For the thread that expands. Raises FormatError for damaged streams, UnsupportedError
        for other compressions, and StoppedError."""
        try:
            with self._cores.work():
                expander = self._timed("decompress", open_expander, self._fetch, self.name)
                # The stream below checks the digest: of a plain archive, that is the diff_id.
                plain = expander.kind == "none"
                self._is_checked = plain and self.layer.digest == self.layer.diff_id
                while piece := self._timed("decompress", expander.read, CHUNK):
                    self.pipe.put(piece)
            self.pipe.end()
        except BaseException:
            self.stop()
            raise

    def read(self, size: int) -> Buffer:
        """For the thread that applies: the next bytes (whatever ``size`` is), ``b""`` at the end.

        The end comes only if all is right. Raises FormatError for a wrong diff_id, StoppedError.
        """
        piece = self.pipe.get()
        if piece:
            self._size += len(piece)
            if not self._is_checked:
                self._timed("digest", self._digest.update, piece)
            return piece
        if self._is_checked:
            return b""
        actual = f"sha256:{self._digest.hexdigest()}"
        if actual != self.layer.diff_id:
            raise FormatError(
                f"{self.name} expands to {self._size} bytes with the digest {actual}, but its"
                f" image says {self.layer.diff_id} (diff_id)",
                hint="config and layers of this image do not belong together",
            )
        return b""

    def _fetch(self, size: int) -> Buffer:
        return cast(Buffer, self._timed("read", self._feed.read, size))

    def _timed(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        with self._shares.of(what):
            return function(*arguments)
