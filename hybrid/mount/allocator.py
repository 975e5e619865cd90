"""How the server's memory allocator treats what a read used: it keeps it for the next one."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 16 << 20
_LARGEST_BYTES = 8 << 20


def keep_freed_memory() -> None:
    """Have up to 16 MiB that were freed kept, for allocations of up to 8 MiB each.

    By default glibc gives the megabytes of a large read back to the kernel after each, and for the
    next one the kernel clears them again page by page, which takes as long as expanding the blocks
    does. Other C libraries have no such switch, and then nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
