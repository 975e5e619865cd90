"""Sizes for people. PURE."""

from __future__ import annotations


def human_size(size: float) -> str:
    """Bytes in the unit that suits them: ``512 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
