"""ErofsImage: a tree, laid out as an erofs, as changes of an empty disk."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from tempfile import TemporaryFile

from hybrid.build.erofs.inodes import (
    INLINE,
    INODE_SIZE,
    PLAIN,
    SLOT,
    Place,
    device_number,
    pack_inode,
    pack_superblock,
)
from hybrid.build.erofs.names import (
    BLOCK,
    Name,
    directory_size,
    pack_directory,
    pack_xattrs,
    xattr_count,
)
from hybrid.build.erofs.tree import FILE, FileTree, Node
from hybrid.build.ext4.changes import Extent, read_exactly
from hybrid.build.ext4.native import DIRECTORY, ROOT, SYMLINK
from hybrid.core.device import check_range
from hybrid.errors import StorageFullError

_INODES = BLOCK
"""Behind the superblock come all inodes, then larger directories, then files. Offset in bytes."""


class ErofsImage:
    """What is on a disk of ``size`` bytes. Has what ``Changes`` (build/ext4) has. For a thread.

    Raises StorageFullError if the tree does not fit, and OSError. The tree must stay as it is, and
    its scratch file open, until ``close``.
    """

    def __init__(self, tree: FileTree, size: int, uuid: bytes, directory: str | None) -> None:
        self.size = size
        self._tree = tree
        self._above: dict[int, int] = {ROOT: ROOT}
        self._order = list(self._in_order())
        self._nids: dict[int, int] = {}
        self._blocks: dict[int, int] = {}
        self._starts = array("Q")
        self._lengths = array("Q")
        self._sources = array("Q")
        tree.scratch.flush()
        end = self._place_inodes()
        first_data = -(-end // BLOCK)
        blocks = self._place_content(first_data)
        if blocks * BLOCK > size:
            raise StorageFullError(
                f"the files need {blocks * BLOCK} bytes, and the virtual disk has {size}",
                hint="choose a larger one with --size",
            )
        superblock = pack_superblock(
            root=self._nids[ROOT], inodes=len(self._order), blocks=blocks, uuid=uuid
        )
        self._metadata = TemporaryFile(prefix="hybrid-layer-", dir=directory)  # noqa: SIM115
        self._metadata.write(superblock)
        self._write_metadata(first_data)
        self._metadata.flush()
        self.extents = list(self._extents(self._metadata.tell(), blocks * BLOCK))

    def read(self, offset: int, length: int) -> bytes:
        """Data of an extent. For one thread at a time."""
        check_range(offset, length, self.size, "a layer")
        content = self._metadata_end
        data = bytearray()
        if offset < content:
            step = min(length, content - offset)
            data += read_exactly(self._metadata.fileno(), offset, step)
        at, end = offset + len(data), offset + length
        number = max(0, bisect_right(self._starts, at) - 1)
        scratch = self._tree.scratch.fileno()
        while at < end and number < len(self._starts):
            start, size, source = (
                self._starts[number], self._lengths[number], self._sources[number],
            )  # fmt: skip
            number += 1
            if start >= end:
                break
            if start + size <= at:
                continue
            data += bytes(max(0, start - at))
            at = max(at, start)
            step = min(end, start + size) - at
            data += read_exactly(scratch, source + at - start, step)
            at += step
        return bytes(data.ljust(length, b"\0"))

    def close(self) -> None:
        self._metadata.close()

    def _in_order(self) -> Iterator[tuple[int, Node]]:
        """Each inode once, directories before what is in them, by their names."""
        nodes = self._tree.nodes
        seen: set[int] = set()
        todo = [ROOT]
        while todo:
            inode = todo.pop()
            node = nodes[inode]
            if node.kind != DIRECTORY and node.links > 1:
                if inode in seen:
                    continue
                seen.add(inode)
            yield inode, node
            if node.kind == DIRECTORY:
                children = sorted(self._tree.children(inode).items(), reverse=True)
                for _, child in children:
                    if nodes[child].kind == DIRECTORY:
                        self._above[child] = inode
                    todo.append(child)

    # -- Where everything lies -------------------------------------------------------------------

    def _place_inodes(self) -> int:
        """Numbers of all inodes; returns where they end."""
        at = _INODES
        for inode, node in self._order:
            fixed = INODE_SIZE + len(pack_xattrs(node.xattrs))
            tail = self._inline_size(inode, node, fixed)
            at += -at % SLOT
            if tail and at % BLOCK + fixed + tail > BLOCK:
                at += -at % BLOCK
            self._nids[inode] = at // SLOT
            at += fixed + tail
        return at

    def _content_size(self, inode: int, node: Node) -> int:
        if node.kind == DIRECTORY:
            return directory_size([len(name) for name in self._names(inode)])
        return len(node.target) if node.kind == SYMLINK else node.size

    def _inline_size(self, inode: int, node: Node, fixed: int) -> int:
        """Bytes of a small directory or link, which stand behind the inode in the same block."""
        if node.kind not in (DIRECTORY, SYMLINK):
            return 0
        size = self._content_size(inode, node)
        return size if fixed + size <= BLOCK else 0

    def _place_content(self, block: int) -> int:
        """Blocks of larger directories, then of files; returns where the disk is free."""
        for inode, node in self._order:
            if node.kind in (DIRECTORY, SYMLINK):
                fixed = INODE_SIZE + len(pack_xattrs(node.xattrs))
                if not self._inline_size(inode, node, fixed):
                    self._blocks[inode] = block
                    block += -(-self._content_size(inode, node) // BLOCK)
        self._metadata_end = block * BLOCK
        for inode, node in self._order:
            if node.kind == FILE and node.size:
                self._blocks[inode] = block
                for start, source, length in node.pieces or ():
                    self._starts.append(block * BLOCK + start)
                    self._lengths.append(length)
                    self._sources.append(source)
                block += -(-node.size // BLOCK)
        return block

    def _extents(self, metadata: int, end: int) -> Iterator[Extent]:
        """All blocks but those in holes of files."""
        start, stop = 0, -(-metadata // BLOCK) * BLOCK
        for at, length in zip(self._starts, self._lengths, strict=True):
            first, last = at // BLOCK * BLOCK, -(-(at + length) // BLOCK) * BLOCK
            if first > stop:
                yield Extent(start, stop - start, False)
                start = first
            stop = max(stop, last)
        yield Extent(start, min(stop, end) - start, False)

    # -- Their bytes -----------------------------------------------------------------------------

    def _write_metadata(self, first_data: int) -> None:
        file = self._metadata
        larger: list[bytes] = []
        for number, (inode, node) in enumerate(self._order, 1):
            xattrs = pack_xattrs(node.xattrs)
            content = self._content(inode, node)
            inline = content if inode not in self._blocks else b""
            place = Place(
                INLINE if inline else PLAIN,
                len(content) if node.kind in (DIRECTORY, SYMLINK) else node.size,
                self._block_of(inode, node),
                self._links(inode, node),
            )
            self._pad_to(self._nids[inode] * SLOT)
            file.write(pack_inode(node, number, xattr_count(xattrs), place) + xattrs + inline)
            if content and not inline:
                larger.append(content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0"))
        self._pad_to(first_data * BLOCK)
        for content in larger:
            file.write(content)

    def _pad_to(self, offset: int) -> None:
        self._metadata.write(bytes(offset - self._metadata.tell()))

    def _block_of(self, inode: int, node: Node) -> int:
        if node.kind in (FILE, DIRECTORY, SYMLINK):
            return self._blocks.get(inode, 0)
        return device_number(*node.rdev)

    def _content(self, inode: int, node: Node) -> bytes:
        if node.kind != DIRECTORY:
            return node.target
        names = self._names(inode)
        nodes = self._tree.nodes
        return pack_directory(
            [Name(name, self._nids[child], nodes[child].kind) for name, child in names.items()]
        )

    def _names(self, directory: int) -> dict[bytes, int]:
        """All names in a directory, sorted."""
        every = self._tree.children(directory) | {
            b".": directory,
            b"..": self._above[directory],
        }
        return dict(sorted(every.items()))

    def _links(self, inode: int, node: Node) -> int:
        if node.kind != DIRECTORY:
            return node.links
        nodes = self._tree.nodes
        inside = self._tree.children(inode).values()
        return 2 + sum(nodes[child].kind == DIRECTORY for child in inside)
