"""Progress of a conversion on a terminal: a line for each layer on its way, and one for all."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hybrid.build.contract import Advance
from hybrid.build.convert.run import LayerOutcome, Watcher
from hybrid.cli.transfer_progress import SHOWN_DIGEST, progress_columns
from hybrid.core.units import human_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("hybrid")


class LayerNotices(Watcher):
    """Says of each layer what became of it: to a terminal, and with -v."""

    def end(self, layer: LayerOutcome) -> None:
        source = layer.source[:SHOWN_DIGEST] or "file system"
        logger.info(
            "%s %s -> %s (%s)",
            layer.how,
            source,
            layer.digest[:SHOWN_DIGEST],
            human_size(layer.size),
        )


class TerminalWatcher(LayerNotices):
    """Shows layers while they are on their way."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._total = shown.add_task("total", total=0)
        self._tasks: dict[str, TaskID] = {}
        self._size = 0

    def image(self, name: str, layers: int, size: int) -> None:
        self._size += size
        self._shown.update(self._total, total=self._size)

    def begin(self, digest: str, size: int) -> Advance:
        task = self._tasks[digest] = self._shown.add_task(digest[:SHOWN_DIGEST], total=size)

        def advance(count: int) -> None:
            self._shown.advance(task, count)
            self._shown.advance(self._total, count)

        return advance

    def end(self, layer: LayerOutcome) -> None:
        super().end(layer)
        task = self._tasks.pop(layer.source, None)
        if task is not None:
            self._shown.remove_task(task)
        elif layer.how == "reused":
            self._shown.advance(self._total, layer.source_size)


@contextmanager
def progress() -> Iterator[Watcher]:
    """A watcher that shows on stderr if that is a terminal, else one that only has notices."""
    if not sys.stderr.isatty():
        yield LayerNotices()
        return
    # rich takes 100 ms to import.
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True), transient=True) as shown:
        yield TerminalWatcher(shown)
