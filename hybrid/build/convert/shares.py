"""Where the time of a conversion goes: processor seconds of its threads, by kind of work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Shares:
    """``seconds`` by kind: decompress, digest, apply, compress. ``bytes``: of all archives."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes = 0
        self._lock = Lock()

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the processor time of this thread until the end of the block."""
        start = time.thread_time()
        try:
            yield
        finally:
            passed = time.thread_time() - start
            with self._lock:
                self.seconds[what] += passed
