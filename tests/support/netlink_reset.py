"""The way out for processes that hang in the kernel for a netlink answer (docs/doctor.md)."""

from __future__ import annotations

import time

from hybrid.block.names import PARAMETERS

_GO_ON_SECONDS = 0.5


def reset_module_netlink() -> None:
    """Let everything on this machine that waits for a netlink answer fail."""
    (PARAMETERS / "block_netlink").write_text("1")
    try:
        (PARAMETERS / "reset_netlink").write_text("1")
        # The errno is EINTR, after which Python writes again: that must meet the block, and fail
        # with EAGAIN, or it would wait as before.
        time.sleep(_GO_ON_SECONDS)
    finally:
        (PARAMETERS / "block_netlink").write_text("0")
