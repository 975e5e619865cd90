"""A raw disk as an overlaybd image: one layer in a file, named by a config.v1.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.build_lsmt import Entry, build_sealed

_BLOCK = 4096
_MOST_BLOCKS = 2000


def config_of(raw: Path, directory: Path, **more: Any) -> Path:
    """Write layer and config; returns the path of the config. ``more``: other keys of it."""
    directory.mkdir(parents=True, exist_ok=True)
    content = raw.read_bytes()
    entries, data = [], bytearray()
    for first, count in _runs(content):
        entries.append(Entry(first * 8, count * 8, 8 + len(data) // 512))
        data += content[first * _BLOCK : (first + count) * _BLOCK]
    layer = directory / "layer"
    layer.write_bytes(build_sealed(entries, bytes(data), vsize=len(content)))
    config = directory / "config.v1.json"
    config.write_text(json.dumps({"lowers": [{"file": str(layer)}], **more}))
    return config


def _runs(content: bytes) -> Iterator[tuple[int, int]]:
    """(first block, blocks) of what is not zero."""
    start = None
    for block in range(len(content) // _BLOCK + 1):
        piece = content[block * _BLOCK : (block + 1) * _BLOCK]
        has_data = any(piece)
        if start is not None and (not has_data or block - start == _MOST_BLOCKS):
            yield start, block - start
            start = None
        if has_data and start is None:
            start = block
