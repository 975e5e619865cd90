"""PR_SET_IO_FLUSHER for servers that take writes of the kernel (prctl(2), Linux 5.6).

To answer a write this process needs memory. Without the flag the kernel may try to get some by
writing dirty pages of the very disk that is served, and wait for this process to take them.
"""

from __future__ import annotations

import ctypes
import logging
import os

_PR_SET_IO_FLUSHER = 57

_libc = ctypes.CDLL(None, use_errno=True)

logger = logging.getLogger(__name__)


def become_io_flusher() -> bool:
    """Set the flag for this thread, and all threads and processes that it starts from now on.

    It needs CAP_SYS_RESOURCE: an ordinary user's server goes without it, which the log tells.
    """
    zero = ctypes.c_ulong(0)
    if _libc.prctl(_PR_SET_IO_FLUSHER, ctypes.c_ulong(1), zero, zero, zero) == 0:
        return True
    logger.warning(
        "the kernel refuses PR_SET_IO_FLUSHER (%s): if memory is short, writes may wait for "
        "themselves",
        os.strerror(ctypes.get_errno()),
    )
    return False
