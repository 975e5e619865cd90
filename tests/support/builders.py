"""Makers of test images, written from the specifications alone and without the product's code.

build_zfile    ZFile          parse_zfile    its strict reader
build_lsmt     sealed layer   parse_lsmt     its strict reader
build_sealed   sealed layer from raw entries, for damage
build_append_rw               the two files of a writable layer
build_tar      tar wrapper    parse_tar      its strict reader
model_merge    the disk that a stack of ModelLayers makes, painted byte by byte
build_blob     a layer as a registry holds it: tar( zfile( lsmt ) ), each wrapper optional
"""

from __future__ import annotations

import hashlib
from typing import Any

from support.build_crc import crc32c_raw
from support.build_lsmt import (
    INVALID_ENTRY,
    NIL_UUID,
    SECTOR,
    Entry,
    ModelLayer,
    ParsedLsmt,
    Remote,
    Write,
    build_append_rw,
    build_lsmt,
    build_sealed,
    model_merge,
    model_size,
    parse_lsmt,
)
from support.build_tar import ParsedTar, build_tar, parse_tar
from support.build_zfile import ParsedZFile, build_zfile, parse_zfile

__all__ = [
    "INVALID_ENTRY",
    "NIL_UUID",
    "SECTOR",
    "Entry",
    "ModelLayer",
    "ParsedLsmt",
    "ParsedTar",
    "ParsedZFile",
    "Remote",
    "Write",
    "build_append_rw",
    "build_blob",
    "build_lsmt",
    "build_sealed",
    "build_tar",
    "build_zfile",
    "crc32c_raw",
    "digest_of",
    "model_merge",
    "model_size",
    "parse_lsmt",
    "parse_tar",
    "parse_zfile",
]


def build_blob(
    layer: ModelLayer | bytes,
    *,
    zfile: bool = True,
    tar: str | None = "pax",
    **zfile_options: Any,
) -> bytes:
    """A layer (or a finished LSMT file) in its wrappers; ``tar`` is a style of build_tar or None.

    The default is what converters push: tar( zfile lz4 4 KiB ( lsmt ) ), header overwritten.
    """
    data = layer.build() if isinstance(layer, ModelLayer) else layer
    if zfile:
        data = build_zfile(data, **({"overwrite_header": True} | zfile_options))
    return build_tar(data, tar) if tar is not None else data


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` as manifests write it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
