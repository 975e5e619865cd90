"""A disk of the kernel's SCSI target over its own ramdisk (rd_mcp): no user space takes part.

    core/rd_mcp_<N>/hybrid-bench-<id>        the backstore; control takes rd_pages, of 4 KiB each

Its loopback target is made as hybrid makes its own (``hybrid.block.configfs``). Source:
drivers/target/target_core_rd.c.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.fronts import exported_disk
from hybrid.block import configfs, names
from hybrid.block.kernel_files import make_directory, write_token

_PAGE = 4096


@dataclass(frozen=True)
class _Ramdisk(names.Target):
    """The names of one. Its WWN is none of hybrid's, so that nobody takes it for a leftover."""

    @property
    def name(self) -> str:
        return f"hybrid-bench-{self.id}"

    @property
    def hba(self) -> Path:
        return names.ROOT / "core" / f"rd_mcp_{self.number}"


@contextlib.contextmanager
def ramdisk(size: int) -> Iterator[Path]:
    """The node of a disk of ``size`` bytes, all in memory; gone at the end."""
    target = _Ramdisk(secrets.token_hex(4), "3" + secrets.token_hex(8)[1:])
    try:
        make_directory(target.hba)
        make_directory(target.backstore)
        write_token(target.backstore / "control", f"rd_pages={size // _PAGE}")
        write_token(target.backstore / "enable", "1")
        yield exported_disk(target)
    finally:
        configfs.unexport(target)
        configfs.remove_backstore(target)
