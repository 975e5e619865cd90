"""What all images of one conversion share, and what is told of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.build.blob_writer import Wrapping
from hybrid.build.contract import Advance, ImageDestination, ImageSource, no_advance
from hybrid.build.convert.cores import Cores
from hybrid.build.convert.feed import RunAhead
from hybrid.build.convert.kernel_disk import KernelDisk
from hybrid.build.convert.lower import LowerBlobs
from hybrid.build.convert.memory import Memory
from hybrid.build.convert.options import Options
from hybrid.build.convert.shares import Shares
from hybrid.core.output_file import write_error
from hybrid.errors import HybridError, StorageFullError

RUN_AHEAD_BYTES = 512 << 20
"""Compressed bytes on disk that were fetched and are not needed yet."""

_SPARE = 2
"""More threads at a time than were asked for: those at work wait for the disk, and for Python's
lock. With fewer two processors are idle for a tenth of the time. One thread is one."""


class Watcher:
    """Told how a conversion goes on. This one does nothing with it."""

    def image(self, name: str, layers: int, size: int) -> None:
        """An image begins: so many source layers, of ``size`` compressed bytes together."""

    def begin(self, digest: str, size: int) -> Advance:
        """A source layer is being converted; the answer is told of each of its bytes."""
        return no_advance

    def end(self, layer: LayerOutcome) -> None:
        """A layer is at its destination."""


@dataclass(frozen=True)
class LayerOutcome:
    """What became of a layer. Sizes in bytes."""

    source: str
    """Digest of the source layer; "" for a layer that has none (an empty file system) or all."""
    source_size: int
    digest: str
    size: int
    how: str
    """``converted`` or ``reused``."""
    stored: str = ""
    """As PutBlob.how: ``written``, ``mounted`` or ``present``."""


@dataclass
class Run:
    """One conversion. ``directory`` is for temporary files, all without names."""

    source: ImageSource
    destination: ImageDestination
    lower: LowerBlobs
    options: Options
    memory: Memory
    directory: Path
    watcher: Watcher = field(default_factory=Watcher)
    kernel_disk: KernelDisk | None = None
    """For conversions via mount."""
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        threads = self.options.threads
        self.cores = Cores(threads + _SPARE if threads > 1 else 1)
        self.ahead = RunAhead(self.directory, RUN_AHEAD_BYTES)

    @property
    def wrapping(self) -> Wrapping:
        options = self.options
        return Wrapping(options.compress, options.block_size, threads=options.threads)


def scratch_error(error: OSError, directory: Path) -> HybridError:
    """The error for the user when temporary files cannot be written there."""
    found = write_error(error, directory)
    if isinstance(found, StorageFullError):
        hint = "TMPDIR names another directory for temporary files"
        return StorageFullError(found.message, hint=hint)
    return found


def scratch_directory() -> Path:
    """$TMPDIR, else /var/tmp: layers are large, and /tmp is memory on many machines."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")
