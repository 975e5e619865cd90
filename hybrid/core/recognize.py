"""Recognising overlaybd layers by their first bytes, after a tool took their annotations away.

PURE. ``skopeo copy`` from an OCI layout without ``--preserve-digests`` compresses layers again and
drops annotations, so the manifest looks like that of a plain image. Spec: tar-and-blob 1, 6.
"""

from __future__ import annotations

import zlib

import zstandard

from hybrid.core.manifest import plain_image, recompressed_image
from hybrid.errors import UnsupportedError

RECOGNIZE_BYTES = 160 << 10
"""First bytes of a blob that are enough, if it has so many. A zstd block (up to 128 KiB) can be
decompressed only as a whole."""

_HEAD_BYTES = 2048
"""Of the uncompressed stream: two tar headers, a PAX body, and the first bytes of the payload."""
_BLOCK = 512
_MAGICS = (
    b"ZFile\0\1\0tuji.yyf@Alibaba",
    b"LSMT\0\1\2\0" + bytes.fromhex("657e63d29444084ca2d2c8ec4fcfae8a"),
)
_MEMBER_NAMES = (
    b"overlaybd.pax",
    b"overlaybd.commit",
    b".turbo.ociv1",
    b"ext4.fs.meta",
    b"erofs.fs.meta",
)
"""First members of native and of TurboOCI layers."""
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def looks_like_overlaybd_blob(first_bytes: bytes) -> bool:
    """Whether a blob that begins so is an overlaybd layer, as it is or inside gzip or zstd."""
    head = first_bytes[:_HEAD_BYTES]
    if head.startswith(_GZIP_MAGIC):
        head = _gunzip_head(first_bytes)
    elif head.startswith(_ZSTD_MAGIC):
        head = _unzstd_head(first_bytes)
    if head.startswith(_MAGICS):
        return True
    return any(_tar_name(head, offset) in _MEMBER_NAMES for offset in (0, 2 * _BLOCK))


def unannotated_image(image: str, first_bytes: bytes) -> UnsupportedError:
    """The right error for an image without annotations, by the first bytes of its bottom layer."""
    if looks_like_overlaybd_blob(first_bytes):
        return recompressed_image(image, "its layers have no annotations any more")
    return plain_image(image)


def _tar_name(head: bytes, offset: int) -> bytes:
    block = head[offset : offset + _BLOCK]
    if block[257:262] != b"ustar":
        return b""
    return block[:100].split(b"\0", 1)[0].removeprefix(b"./")


def _gunzip_head(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _HEAD_BYTES)
    except zlib.error:
        return b""


def _unzstd_head(data: bytes) -> bytes:
    # A stream reader stops after the wanted bytes; a block can expand a hundred thousand times.
    try:
        return (
            zstandard.ZstdDecompressor(max_window_size=1 << 27)
            .stream_reader(data)
            .read(_HEAD_BYTES)
        )
    except zstandard.ZstdError:
        return b""
