"""Pipe: pieces of bytes on their way from one thread to another, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import deque

import trio

from hybrid.build.convert.cores import Cores
from hybrid.core.device import Buffer
from hybrid.core.disk import first_error


class StoppedError(Exception):
    """The other side has given up. Never the reason of a failure: that side has that."""


def reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a group that is the reason of the others.

    A thread may fail only after the other one has been told to stop, which cancels the task that
    waits for it: cancellations are no reason either, as long as there is an error.
    """
    _, others = group.split((StoppedError, trio.Cancelled))
    return first_error(others or group)


class Pipe:
    """One thread puts, another gets; both work on ``cores``, and rest while they wait here.

    It takes a piece as long as it holds less than ``room`` bytes.
    """

    def __init__(self, cores: Cores, room: int) -> None:
        self._cores = cores
        self._room = room
        self._held = 0
        self._pieces: deque[Buffer] = deque()
        self._change = threading.Condition()
        self._ended = False
        self._stopped = False

    @property
    def is_full(self) -> bool:
        """Whether ``put`` would wait."""
        return self._held >= self._room

    def put(self, piece: Buffer) -> None:
        """Raises StoppedError if ``stop`` was called."""
        with self._change:
            if not self.is_full and not self._stopped:
                self._append(piece)
                return
        with self._cores.rest(), self._change:
            while self.is_full and not self._stopped:
                self._change.wait()
            if self._stopped:
                raise StoppedError
            self._append(piece)

    def get(self) -> Buffer:
        """The next piece; ``b""`` at the end. Raises StoppedError if ``stop`` was called."""
        with self._change:
            if self._pieces or self._ended or self._stopped:
                return self._take()
        with self._cores.rest(), self._change:
            while not (self._pieces or self._ended or self._stopped):
                self._change.wait()
            return self._take()

    def go_on(self) -> None:
        """For a thread that neither puts nor gets for long. Raises StoppedError as these do."""
        if self._stopped:
            raise StoppedError

    def end(self) -> None:
        """There are no more pieces."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def stop(self) -> None:
        """Let whoever waits on the other side fail, now and later."""
        with self._change:
            self._stopped = True
            self._pieces.clear()
            self._held = 0
            self._change.notify_all()

    def _append(self, piece: Buffer) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        self._change.notify_all()

    def _take(self) -> Buffer:
        if self._stopped:
            raise StoppedError
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._held -= len(piece)
        self._change.notify_all()
        return piece
