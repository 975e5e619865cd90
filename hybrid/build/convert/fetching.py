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


class Fetching:
    """Layers are taken in their order, from number ``first`` on; fetched in ``nursery``."""

    def __init__(
        self, run: Run, layers: Sequence[SourceLayer], first: int, nursery: trio.Nursery
    ) -> None:
        self._run = run
        self._layers = layers
        self._begun = first
        self._nursery = nursery
        self._feeds: dict[int, Feed] = {}

    def begin(self, number: int) -> None:
        """Layer ``number`` is about to be needed: fetch it, and some of those above it."""
        run = self._run
        while self._begun < min(number + _FETCHED_AHEAD, len(self._layers)):
            layer = self._layers[self._begun]
            content = run.source.blob(layer.digest, layer.size)
            # What is on this machine need not be fetched ahead.
            room = run.ahead if content.origin is not None else None
            feed = Feed(run.cores, room, run.watcher.begin(layer.digest, layer.size))
            self._feeds[self._begun] = feed
            self._nursery.start_soon(feed.fill, content)
            self._begun += 1

    def take(self, number: int) -> Expanding:
        """Layer ``number``, which was begun, for whoever applies it."""
        layer = self._layers[number]
        name = f"layer {number} ({layer.digest}) of {self._run.source.name}"
        feed = self._feeds[number]
        return Expanding(layer, name, feed, self._run.cores, self._run.shares)

    def stop(self) -> None:
        """Let all threads end that read layers."""
        for feed in self._feeds.values():
            feed.stop()

    def close(self) -> None:
        """Give back what feeds have kept that nobody took. Their tasks are over."""
        for feed in self._feeds.values():
            feed.close()
