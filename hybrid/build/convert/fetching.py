"""The source layers of one image, fetched a little ahead of their use."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.feed import Feed
from hybrid.build.convert.options import SourceLayer
from hybrid.build.convert.run import Run

_FETCHED_AHEAD = 3
"""Layers that are fetched at a time, that which is applied among them."""
_EXPANDED_AHEAD = 2
"""Layers that are expanded at a time, as far as their pipes have room: while the changes of one are
collected, the next gets ready."""


class Fetching:
    """Layers are taken in their order; tasks in ``nursery`` fetch and expand them."""

    def __init__(self, run: Run, layers: Sequence[SourceLayer], nursery: trio.Nursery) -> None:
        self._run = run
        self._layers = layers
        self._nursery = nursery
        self._feeds: dict[int, Feed] = {}
        self._expanding: dict[int, Expanding] = {}

    def begin(self, number: int) -> None:
        """Layer ``number`` is about to be needed: fetch it, and some of those above it."""
        run, nursery = self._run, self._nursery
        for ahead in range(number, min(number + _FETCHED_AHEAD, len(self._layers))):
            if ahead not in self._feeds:
                layer = self._layers[ahead]
                content = run.source.blob(layer.digest, layer.size)
                # What is on this machine need not be fetched ahead.
                room = run.ahead if content.origin is not None else None
                advance = run.watcher.begin(layer.digest, layer.size)
                feed = self._feeds[ahead] = Feed(run.cores, room, advance)
                nursery.start_soon(feed.fill, content)
        for ahead in range(number, min(number + _EXPANDED_AHEAD, len(self._layers))):
            if ahead not in self._expanding:
                layer = self._layers[ahead]
                name = f"layer {ahead} ({layer.digest}) of {run.source.name}"
                expanding = Expanding(layer, name, self._feeds[ahead], run.cores, run.shares)
                self._expanding[ahead] = expanding
                nursery.start_soon(expanding.expand)

    def take(self, number: int) -> Expanding:
        """Layer ``number``, which was begun, for whoever applies it."""
        return self._expanding[number]

    def close(self) -> None:
        """Give back what feeds have kept that nobody took. Their tasks are over."""
        for feed in self._feeds.values():
            feed.close()
