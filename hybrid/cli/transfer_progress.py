"""Progress of a copy on a terminal: one line for each blob on its way, and one for all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hybrid.build.contract import Advance, PutBlob
from hybrid.build.copy import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

SHOWN_DIGEST = 19
"""``sha256:`` and twelve digits."""


class TerminalWatcher(Watcher):
    """Shows blobs while they are on their way."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._total = shown.add_task("total", total=0)
        self._tasks: dict[str, TaskID] = {}
        self._size = 0

    def begin(self, digest: str, size: int) -> Advance:
        task = self._shown.add_task(digest[:SHOWN_DIGEST], total=size)
        self._tasks[digest] = task
        self._size += size
        self._shown.update(self._total, total=self._size)

        def advance(count: int) -> None:
            self._shown.advance(task, count)
            self._shown.advance(self._total, count)

        return advance

    def end(self, digest: str, put: PutBlob | None) -> None:
        self._shown.remove_task(self._tasks.pop(digest))
        if put is not None and put.how != "written":
            self._shown.advance(self._total, put.size)


def progress_columns() -> tuple[ProgressColumn, ...]:
    """What is shown of bytes on their way."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


@contextmanager
def progress() -> Iterator[Watcher]:
    """A watcher that shows on stderr if that is a terminal, else one that keeps quiet."""
    if not sys.stderr.isatty():
        yield Watcher()
        return
    # rich takes 100 ms to import.
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True), transient=True) as shown:
        yield TerminalWatcher(shown)
