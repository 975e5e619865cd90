"""A tree of files in memory, changed by archives as an ext4 is. What is in files lies on disk."""

from __future__ import annotations

from typing import IO

from hybrid.build.ext4.native import DIRECTORY, ROOT, SYMLINK, NativeError
from hybrid.core.device import Buffer

FILE = 1
"""The type of a regular file in directory entries (as DIRECTORY and SYMLINK); the others are
devices and fifos: 3 to 6, the type bits of their modes say which."""
MAX_NAME = 255
MAX_TARGET = 4095
MAX_VALUES = 64 << 20
"""Bytes of all values of extended attributes that differ; they are kept in memory."""
_TYPES = {0o020000: 3, 0o060000: 4, 0o010000: 5, 0o140000: 6}


class Node:
    """A file of any kind. ``kind`` is its type in directory entries."""

    __slots__ = (
        "children", "gid", "kind", "layer", "links", "mode", "ns", "pieces", "rdev", "seconds",
        "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: int, mode: int, uid: int, gid: int, seconds: int, ns: int) -> None:
        self.kind = kind
        self.mode = mode
        """Permissions (12 bits)."""
        self.uid = uid
        self.gid = gid
        self.seconds = seconds
        self.ns = ns
        self.links = 1
        self.size = 0
        self.layer = 0
        self.rdev = (0, 0)
        self.target = b""
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, int] | None = None
        self.pieces: list[tuple[int, int, int]] | None = None
        """Of a file, ascending: offset in it, offset in the scratch file, length. Else zeros."""


class FileTree:
    """The files of an image, as its archives are applied. ``scratch`` keeps what is in files.

    The methods are those of ``native.FileSystem``, and raise NativeError for what erofs cannot
    hold, and OSError if the scratch file cannot be written.
    """

    def __init__(self, scratch: IO[bytes], limit: int) -> None:
        """``limit``: bytes that all files may have together, holes left out."""
        self.nodes: dict[int, Node] = {ROOT: Node(DIRECTORY, 0o755, 0, 0, 0, 0)}
        self.nodes[ROOT].children = {}
        self.scratch = scratch
        self._limit = limit
        self._live = 0
        self._written = 0
        self._values: dict[bytes, bytes] = {}
        """Of extended attributes, each one once."""
        self._values_size = 0
        self._last = ROOT
        self._layer = 0
        self._open: Node | None = None

    def begin_layer(self) -> None:
        """Another archive begins: what is there now is not of its own."""
        self._layer += 1

    def children(self, directory: int) -> dict[bytes, int]:
        """The names in a directory."""
        found = self.nodes[directory].children
        assert found is not None, "a directory"
        return found

    # -- as native.FileSystem --------------------------------------------------------------------

    def lookup(self, directory: int, name: bytes) -> tuple[int, int, bool] | None:
        inode = self.children(directory).get(name)
        if inode is None:
            return None
        node = self.nodes[inode]
        return inode, node.kind, node.layer == self._layer

    def listdir(self, directory: int) -> list[tuple[bytes, int, int, bool]]:
        found = []
        for name, inode in self.children(directory).items():
            node = self.nodes[inode]
            found.append((name, inode, node.kind, node.layer == self._layer))
        return found

    def readlink(self, inode: int) -> bytes:
        return self.nodes[inode].target

    def mkdir(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int
    ) -> int:
        inode, node = self._add(directory, name, DIRECTORY, mode, uid, gid, seconds, ns)
        node.children = {}
        return inode

    run_used = 0

    def put_files(self, archive: Buffer, known: dict[bytes, int]) -> tuple[int, int, int]:
        """Nothing is taken at once here: each entry comes by itself."""
        return 0, 0, 0

    def put_file(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        data: Buffer,
    ) -> int:  # fmt: skip
        inode = self.begin_file(directory, name, mode, uid, gid, seconds, ns, len(data))
        self.write(data)
        self.end_file()
        return inode

    def begin_file(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        size: int,
    ) -> int:  # fmt: skip
        inode, self._open = self._add(directory, name, FILE, mode, uid, gid, seconds, ns)
        return inode

    def write(self, data: Buffer) -> None:
        node = self._open
        assert node is not None, "an open file"
        if not data:
            return
        if data[0] == data[-1] == 0 and not bytes(data).strip(b"\0"):
            self.skip(len(data))
            return
        self._live += len(data)
        if self._live > self._limit:
            raise NativeError("full", "no blocks are left")
        self.scratch.write(data)
        pieces = node.pieces = node.pieces or []
        length = len(data)
        last = pieces[-1] if pieces else None
        if last and last[0] + last[2] == node.size and last[1] + last[2] == self._written:
            pieces[-1] = (last[0], last[1], last[2] + length)
        else:
            pieces.append((node.size, self._written, length))
        node.size += length
        self._written += length

    def skip(self, length: int) -> None:
        assert self._open is not None, "an open file"
        self._open.size += length

    def end_file(self) -> None:
        self._open = None

    def symlink(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        target: bytes,
    ) -> int:  # fmt: skip
        if not 0 < len(target) <= MAX_TARGET:
            raise NativeError("limit", f"a symbolic link of {len(target)} bytes")
        inode, node = self._add(directory, name, SYMLINK, mode, uid, gid, seconds, ns)
        node.target = target
        return inode

    def mknod(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        major: int, minor: int,
    ) -> int:  # fmt: skip
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise NativeError("limit", f"a device with the number {major}:{minor}")
        kind = _TYPES[mode & 0o170000]
        inode, node = self._add(directory, name, kind, mode & 0o7777, uid, gid, seconds, ns)
        node.rdev = (major, minor)
        return inode

    def link(self, directory: int, name: bytes, inode: int) -> None:
        self._check_name(name)
        self.children(directory)[name] = inode
        self.nodes[inode].links += 1

    def unlink(self, directory: int, name: bytes) -> None:
        inode = self.children(directory).pop(name)
        node = self.nodes[inode]
        node.links -= 1
        if not node.links:
            self._live -= sum(length for _, _, length in node.pieces or ())
            del self.nodes[inode]

    def rmdir(self, directory: int, name: bytes) -> None:
        del self.nodes[self.children(directory).pop(name)]

    def set_attributes(
        self, inode: int, mode: int, uid: int, gid: int, seconds: int, ns: int
    ) -> None:
        node = self.nodes[inode]
        if node.kind != SYMLINK:
            node.mode = mode
        node.uid, node.gid, node.seconds, node.ns = uid, gid, seconds, ns

    def set_xattrs(self, inode: int, attributes: dict[bytes, bytes], keep: bool) -> None:
        node = self.nodes[inode]
        merged = ((node.xattrs or {}) if keep else {}) | attributes
        for name, value in attributes.items():
            if value not in self._values:
                self._values[value] = value
                self._values_size += len(value)
            merged[name] = self._values[value]
        if self._values_size > MAX_VALUES:
            raise NativeError("limit", "too many extended attributes")
        node.xattrs = merged or None

    def mark_fresh(self, inode: int) -> None:
        self.nodes[inode].layer = self._layer

    # -- inner -----------------------------------------------------------------------------------

    def _add(
        self, directory: int, name: bytes, kind: int, mode: int, uid: int, gid: int, seconds: int,
        ns: int,
    ) -> tuple[int, Node]:  # fmt: skip
        self._check_name(name)
        self._last += 1
        node = self.nodes[self._last] = Node(kind, mode, uid, gid, seconds, ns)
        node.layer = self._layer
        self.children(directory)[name] = self._last
        return self._last, node

    def _check_name(self, name: bytes) -> None:
        if len(name) > MAX_NAME:
            raise NativeError("limit", f"a name of {len(name)} bytes")
