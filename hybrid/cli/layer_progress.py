"""How far a layer is, on stderr: for people at a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hybrid.build.compact import Advance
from hybrid.build.layer_file import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress


class _Bars(Watcher):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, what: str, total: int) -> Advance:
        task = self._progress.add_task(what, total=total)

        def advance(count: int) -> None:
            self._progress.advance(task, count)

        return advance


@contextmanager
def shown_progress() -> Iterator[Watcher]:
    """A watcher that draws bars until the end of the block, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Watcher()
        return
    # 40 ms that nobody waits for who does not see it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bars(progress)
