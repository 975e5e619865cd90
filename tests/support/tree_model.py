"""What a tree must look like after layers were applied: an oracle, in memory, by layer-apply.md.

It knows names where the product knows inodes, and is written for clarity, not for speed.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, field

from support.archives import BLOCK_DEVICE, CHAR, DIR, FIFO, FILE, LINK, SYMLINK
from support.ext4_disks import Node, Tree

_KINDS = {
    DIR: stat.S_IFDIR, FILE: stat.S_IFREG, SYMLINK: stat.S_IFLNK, CHAR: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO,
}  # fmt: skip


class RefusedError(Exception):
    """An entry that must be an error."""


@dataclass
class Item:
    """An entry of a layer, or a whiteout by its name."""

    name: bytes
    kind: bytes
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime: int = 0
    content: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Model:
    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR, 0o755)
        self._unpacked: set[tuple[int, bytes]] = set()
        self._created: list[tuple[Node, bytes]] = []
        self._kept: list[Node] = []  # so that no id is used twice in a layer

    def begin_layer(self) -> None:
        self._unpacked = set()

    # --- One entry

    def apply(self, item: Item) -> None:
        """Raises RefusedError with the tree as it was before."""
        self._created = []
        try:
            self._apply(item)
        except RefusedError:
            for parent, name in reversed(self._created):
                del parent.children[name]
                self._unpacked.discard((id(parent), name))
            raise

    def _apply(self, item: Item) -> None:
        parts = [part for part in item.name.split(b"/") if part]
        last = parts[-1]
        if last.startswith(b".wh."):
            self._whiteout(parts)
            return
        parent = self._parent(parts[:-1], create=True)
        assert parent is not None
        old = parent.children.get(last)
        if item.kind == LINK:
            node = self._link_target(item)
            if old is not None and old is not node and node in self._all_below(old):
                raise RefusedError("the target goes away")
        elif item.kind == DIR and old is not None and old.kind == stat.S_IFDIR:
            node = old
            node.xattrs = {}
        else:
            node = Node(_KINDS[item.kind], 0, content=item.content, target=item.link,
                        device=item.device)  # fmt: skip
        parent.children[last] = node
        self._unpacked.add((id(parent), last))
        node.owner, node.mtime = item.owner, item.mtime
        node.mode = 0o777 if node.kind == stat.S_IFLNK else item.mode
        node.xattrs |= item.xattrs
        self._kept += [parent, node]

    def _all_below(self, node: Node) -> list[Node]:
        found = [node]
        for child in node.children.values():
            found += self._all_below(child)
        return found

    def _link_target(self, item: Item) -> Node:
        parts = [part for part in item.link.split(b"/") if part]
        parent = self._parent(parts[:-1], create=False)
        node = parent.children.get(parts[-1]) if parent else None
        if node is None or node.kind == stat.S_IFDIR:
            raise RefusedError("no such target")
        return node

    def _parent(self, parts: list[bytes], *, create: bool) -> Node | None:
        way = [self.root]
        todo = parts[::-1]
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                way = way[:-1] or way
                continue
            node = way[-1].children.get(part)
            if node is None:
                if not create:
                    return None
                node = way[-1].children[part] = Node(stat.S_IFDIR, 0o755)
                self._unpacked.add((id(way[-1]), part))
                self._created.append((way[-1], part))
            if node.kind == stat.S_IFLNK:
                followed += 1
                if followed > 40:
                    raise RefusedError("loop")
                if node.target.startswith(b"/"):
                    way = [self.root]
                todo += node.target.split(b"/")[::-1]
            elif node.kind == stat.S_IFDIR:
                way.append(node)
            elif create:
                raise RefusedError("no directory")
            else:
                return None
        return way[-1]

    # --- Whiteouts

    def _whiteout(self, parts: list[bytes]) -> None:
        parent = self._parent(parts[:-1], create=False)
        if parent is None:
            return
        if parts[-1] == b".wh..wh..opq":
            for name in list(parent.children):
                self._remove(parent, name)
        elif parts[-1][4:] in parent.children:
            self._remove(parent, parts[-1][4:])

    def _remove(self, parent: Node, name: bytes) -> None:
        node = parent.children[name]
        for child in list(node.children):
            self._remove(node, child)
        if (id(parent), name) not in self._unpacked and not node.children:
            del parent.children[name]

    # --- The result

    def tree(self) -> Tree:
        links: dict[int, int] = {}
        for node in self._all_below(self.root):
            links[id(node)] = links.get(id(node), 0) + 1
        found: Tree = {}
        todo = [(b"", self.root)]
        while todo:
            path, node = todo.pop()
            row = found[path] = {
                "kind": node.kind, "mode": node.mode, "owner": node.owner,
                "mtime": node.mtime, "xattrs": node.xattrs,
                "links": links[id(node)] if node.kind != stat.S_IFDIR else 0,
            }  # fmt: skip
            if node.kind == stat.S_IFREG:
                row["content"] = hashlib.sha256(node.content).hexdigest()
            elif node.kind == stat.S_IFLNK:
                row["target"] = node.target
            elif node.kind in (stat.S_IFCHR, stat.S_IFBLK):
                row["device"] = node.device
            todo += [(path + b"/" + n if path else n, c) for n, c in node.children.items()]
        return found
