"""Cores: how many of the threads of a conversion work at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Cores:
    """``count`` places for threads that work; those who wait get one in the order they came.

    A thread works inside ``with cores.work():``. Where it waits for another thread, it does so
    inside ``with cores.rest():``, or nobody might be left to do what it waits for.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    @contextmanager
    def work(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def rest(self) -> Iterator[None]:
        """For a thread that works: give its place to others until the end of the block."""
        self._release()
        try:
            yield
        finally:
            self._acquire()

    @contextmanager
    def more(self, wanted: int) -> Iterator[int]:
        """For a thread that works: its own place, and up to ``wanted`` - 1 that nobody needs now.

        Yields how many these are together.
        """
        with self._lock:
            extra = min(self._free, wanted - 1)
            self._free -= extra
        try:
            yield 1 + extra
        finally:
            for _ in range(extra):
                self._release()

    def pass_on(self) -> None:
        """For a thread that works: let those have a turn who wait for one."""
        if self._waiting:
            with self.rest():
                pass

    def _acquire(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # until somebody hands its place over

    def _release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
