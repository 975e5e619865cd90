"""Plain OCI images, in layouts, from archives: what ``hybrid convert`` is given."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import zstandard
from support import oci
from support.archives import (
    BLOCK_DEVICE,
    CHAR,
    DIR,
    FIFO,
    LINK,
    SYMLINK,
    archive,
    member,
)

DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
_DOCKER_SUFFIX = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}
_ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff10000600ffffffff20000400ffffffff")


def rich_layers() -> list[bytes]:
    """Three archives with what layers can have; the second and third change what is below."""
    acl = {b"system.posix_acl_access": _ACL}
    bottom = archive(
        member(b"./", kind=DIR, mode=0o755, mtime=1),
        member(b"etc/", kind=DIR, mode=0o755, mtime=2),
        member(b"etc/motd", b"hello from layer 1\n", mtime=3),
        member(b"etc/obsolete", b"to be deleted\n", mtime=4),
        member(b"etc/acl", b"acl", mode=0o664, mtime=5, xattrs=acl),
        member(b"usr/", kind=DIR, mode=0o755, mtime=6),
        member(b"usr/bin/", kind=DIR, mode=0o755, mtime=7),
        member(b"usr/bin/tool", b"\x7fELF version 1" * 9000, mode=0o4755, mtime=8),
        member(b"usr/bin/ping", b"ping", mode=0o755, mtime=9,
               xattrs={b"security.capability": bytes.fromhex("0100000200200000" + "00" * 12)}),
        member(b"bin", kind=SYMLINK, link=b"usr/bin", mtime=10),
        member(b"cache/", kind=DIR, mode=0o1777, mtime=11),
        *(member(b"cache/%04d" % i, b"old %d" % i, mtime=12) for i in range(500)),
        member(b"dev/", kind=DIR, mode=0o755, mtime=13),
        member(b"dev/null", kind=CHAR, device=(1, 3), mode=0o666, mtime=14),
        member(b"dev/disk", kind=BLOCK_DEVICE, device=(300, 70000), mode=0o660, gid=6, mtime=15),
        member(b"dev/fifo", kind=FIFO, mode=0o600, mtime=16),
        member(b"long/", kind=DIR, mode=0o755, mtime=17),
        member(b"long/" + b"n" * 250, b"long name", mtime=18),
        member(b"long/\xff\xfe", b"not UTF-8", uid=3_000_000, gid=70000, mtime=19,
               records={b"mtime": b"19.123456789"}),
        member(b"long/link", kind=SYMLINK, link=b"../x//y/./" + b"z" * 300, mtime=20),
    )  # fmt: skip
    middle = archive(
        member(b"etc/.wh.obsolete"),
        member(b"etc/hard", kind=LINK, link=b"etc/motd", mtime=3),
        member(b"cache/", kind=DIR, mode=0o700, uid=7, mtime=31),
        member(b"cache/.wh..wh..opq"),
        member(b"cache/new", b"the only one\n", mtime=32, xattrs={b"user.note": b"kept"}),
        # Through the symbolic link, as an upgraded package has it.
        member(b"bin/tool", b"\x7fELF version 2" * 9001, mode=0o755, mtime=33),
    )
    top = archive(
        member(b"long/.wh.link"),
        member(b"cache/new", b"", kind=SYMLINK, link=b"/nowhere", mtime=41),
        member(b"usr/bin/tool2", kind=LINK, link=b"usr/bin/tool", mode=0o755, mtime=33),
        member(b"empty", b"", mtime=42),
    )
    return [bottom, middle, top]


def packed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.compress(data, 1) if compression == "zstd" else data


@dataclass
class PlainImage:
    """A plain image to be put into a layout. Fields may be changed to make it a bad one."""

    archives: list[bytes]
    compression: str = "gzip"
    docker: bool = False
    architecture: str = "amd64"
    config: dict[str, Any] = field(default_factory=dict)
    diff_ids: list[str] | None = None
    layer_type: str = ""
    annotations: dict[str, str] | None = None

    def blobs(self) -> list[bytes]:
        return [packed(data, self.compression) for data in self.archives]

    def config_data(self) -> bytes:
        ids = self.diff_ids or [oci.digest_of(data) for data in self.archives]
        steps = [{"created_by": f"step {number}"} for number in range(len(self.archives))]
        value = {
            "architecture": self.architecture, "os": "linux",
            "created": "2020-01-02T03:04:05Z",
            "config": {"Env": ["A=\u00fc"], "Cmd": ["/bin/tool"]},
            "history": [*steps, {"created_by": "CMD", "empty_layer": True}],
            "rootfs": {"type": "layers", "diff_ids": ids},
        }  # fmt: skip
        return oci.to_json(value | self.config)

    def manifest(self) -> bytes:
        base, suffixes = (
            (oci.DOCKER_LAYER, _DOCKER_SUFFIX) if self.docker else (oci.OCI_LAYER, _OCI_SUFFIX)
        )
        kind = self.layer_type or base + suffixes[self.compression]
        config_type = DOCKER_CONFIG if self.docker else oci.OCI_CONFIG
        value = {
            "schemaVersion": 2,
            "mediaType": oci.DOCKER_MANIFEST if self.docker else oci.OCI_MANIFEST,
            "config": oci.descriptor(self.config_data(), config_type),
            "layers": [oci.descriptor(blob, kind) for blob in self.blobs()],
        }
        if self.annotations:
            value["annotations"] = self.annotations
        return oci.to_json(value)

    def put(self, builder: oci.LayoutBuilder, tag: str) -> str:
        """Into a layout; returns the digest of the manifest."""
        for data in (*self.blobs(), self.config_data()):
            builder.put(data)
        return builder.add(self.manifest(), tag)

    def entry(self, builder: oci.LayoutBuilder) -> oci.Json:
        """Into a layout, without a tag; returns the entry for an index."""
        for data in (*self.blobs(), self.config_data(), self.manifest()):
            builder.put(data)
        kind = json.loads(self.manifest())["mediaType"]
        platform = {"os": "linux", "architecture": self.architecture}
        return oci.descriptor(self.manifest(), kind, platform=platform)
