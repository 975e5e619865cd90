"""The contract of a disk that is attached to the kernel, and to whose layers it writes.

``hybrid.mount.lent_disk`` has it; this package knows no front ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from hybrid.build.convert.result import ConvertedLayer


class KernelDisk(Protocol):
    """Only between ``attach`` and ``detach`` it is there. Not for several tasks at a time.

    All methods raise what their steps raise, among them SystemSupportError,
    PermissionNeededError and StorageFullError.
    """

    @property
    def directory(self) -> Path:
        """For files of the caller; removed with all that is in it when the command ends, however
        that happens."""
        ...

    async def attach(self, lowers: Sequence[Path] | Sequence[ConvertedLayer]) -> None:
        """Attach a disk that shows these layers, bottom first: files, or blobs of the
        destination."""
        ...

    def mounted(self, fs: str) -> AbstractAsyncContextManager[int]:
        """Mount its file system where nobody sees it. Yields a descriptor of the root directory.

        At the end all is on the disk and the file system unmounted; then an error of the kernel is
        raised that nobody has heard of.
        """
        ...

    async def seal(self) -> Path:
        """What was written since ``attach`` or the last call becomes a layer file, which is there
        until ``detach``. The file system is not mounted."""
        ...

    async def detach(self) -> None:
        """May be called twice. Then another disk can be attached."""
        ...
