"""Decompression in a thread of its own, and the digest of what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.feed import Feed
from hybrid.build.convert.options import SourceLayer
from hybrid.build.convert.pipe import Pipe
from hybrid.build.convert.shares import Shares
from hybrid.build.tar.decompress import Expander, open_expander
from hybrid.build.tar.window import CHUNK
from hybrid.errors import FormatError

PIECES = 4
"""Of CHUNK bytes each, on their way to the thread that applies them."""


class Expanding:
    """A layer on its way from its Feed to its Pipe. ``run`` in a thread."""

    def __init__(
        self, layer: SourceLayer, name: str, feed: Feed, cores: Cores, shares: Shares
    ) -> None:
        self.layer = layer
        self.name = name
        self.pipe = Pipe(cores, PIECES)
        self._feed = feed
        self._cores = cores
        self._shares = shares

    def run(self) -> None:
        """Raises FormatError for damaged streams and for a wrong diff_id, UnsupportedError for
        other compressions, and StoppedError. The end of the pipe is seen only if all is right.
        """
        digest = hashlib.sha256()
        try:
            with self._cores.work():
                expander = self._timed("decompress", open_expander, self._feed.read, self.name)
                size = 0
                while piece := self._timed("decompress", self._read, expander):
                    size += len(piece)
                    self._timed("digest", digest.update, piece)
                    self.pipe.put(piece)
            actual = f"sha256:{digest.hexdigest()}"
            if actual != self.layer.diff_id:
                raise FormatError(
                    f"{self.name} expands to {size} bytes with the digest {actual}, but its image"
                    f" says {self.layer.diff_id} (diff_id)",
                    hint="config and layers of this image do not belong together",
                )
            self._shares.bytes += size
            self.pipe.end()
        except BaseException:
            self.pipe.stop()
            self._feed.stop()
            raise
        finally:
            self._feed.close()

    def _read(self, expander: Expander) -> bytes:
        return expander.read(CHUNK)

    def _timed(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        with self._shares.of(what):
            return function(*arguments)
