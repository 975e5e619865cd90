"""Where the time of a conversion goes: processor seconds of its threads, by kind of work."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Shares:
    """``seconds`` by kind: read, decompress, digest, apply, compress. Each counts once."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._inside = threading.local()

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the processor time of this thread until the end of the block.

        The time of a block inside another counts for the inner one only.
        """
        outer: float = getattr(self._inside, "seconds", 0.0)
        self._inside.seconds = 0.0
        start = time.thread_time()
        try:
            yield
        finally:
            passed = time.thread_time() - start
            with self._lock:
                self.seconds[what] += passed - self._inside.seconds
            self._inside.seconds = outer + passed
