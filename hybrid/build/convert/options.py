"""What the result of a conversion depends on, and the keys and uuids that follow from it. PURE."""

from __future__ import annotations

import hashlib
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass

FORMAT = "hybrid convert 1"
"""Changes whenever the same source would give other bytes, so that nothing older is reused."""
DEFAULT_SIZE = 64 << 30
"""Bytes of the virtual disk."""
FILE_SYSTEMS = ("ext4", "erofs", "xfs", "btrfs")
LIBRARY, MOUNT = "library", "mount"
"""Who writes the file system: this program, or the kernel."""
WRITTEN = {LIBRARY: ("ext4", "erofs"), MOUNT: ("ext4", "xfs", "btrfs")}
"""What each of them can write."""


@dataclass(frozen=True)
class Options:
    """How an image is converted. ``size``: bytes of the virtual disk. ``threads`` changes nothing
    about the result.
    """

    fs: str = "ext4"
    compress: str = "lz4"
    block_size: int = 4096
    size: int = DEFAULT_SIZE
    threads: int = 1
    via: str = LIBRARY


@dataclass(frozen=True)
class SourceLayer:
    """A layer of a plain image: its blob (``size`` bytes), and the digest of what is in it."""

    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class LayerName:
    """What a converted layer is called before it is made."""

    key: str
    """Stands for its source, everything below, and all options: where they agree, so do blobs."""
    uuid: str
    parent_uuid: str


def layer_names(layers: Sequence[SourceLayer], options: Options) -> list[LayerName]:
    """The names of the layers of a converted image, bottom first.

    erofs: of all in one. Else: those of the empty file system, then of each source layer.
    """
    text = [FORMAT, options.fs, str(options.size), options.compress, str(options.block_size)]
    key = _hash(text)
    if options.fs == "erofs":
        for layer in layers:
            key = _hash([key, layer.digest, layer.diff_id])
        return [LayerName(key, derive_uuid(options, [layer.diff_id for layer in layers]), "")]
    names = [LayerName(key, derive_uuid(options, []), "")]
    if options.via == MOUNT:
        key = _hash([key, MOUNT])
    for number, layer in enumerate(layers, 1):
        key = _hash([key, layer.digest, layer.diff_id])
        uuid = derive_uuid(options, [layer.diff_id for layer in layers[:number]])
        names.append(LayerName(key, uuid, names[-1].uuid))
    return names


def derive_uuid(options: Options, diff_ids: Sequence[str]) -> str:
    """The uuid of a layer, from the chain of the source up to it, and from what the disk is.

    A UUID of version 8 (RFC 9562: of one's own making). How blocks are compressed does not matter.
    """
    digest = _hash([FORMAT, "uuid", options.fs, str(options.size), chain_id(diff_ids)])
    raw = bytearray(bytes.fromhex(digest)[:16])
    raw[6] = 0x80 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return str(uuids.UUID(bytes=bytes(raw))).upper()


def chain_id(diff_ids: Sequence[str]) -> str:
    """As the OCI image specification has it; "" for no layers."""
    chain = ""
    for diff_id in diff_ids:
        text = f"{chain} {diff_id}"
        chain = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chain else diff_id
    return chain


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
