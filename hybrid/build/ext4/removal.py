"""Taking away files and whole trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hybrid.build.ext4.native import DIRECTORY, SYMLINK, FileSystem
from hybrid.build.ext4.paths import Resolver
from hybrid.errors import FormatError

_Children = Iterator[tuple[bytes, int, int, bool]]


class Remover:
    """Removes names. ``spare`` keeps what this very layer brought, and the directories above it.

    ``go_on`` is called for each name in a directory, of which there may be millions: what it raises
    ends the removal there.
    """

    def __init__(self, fs: FileSystem, resolver: Resolver, go_on: Callable[[], None]) -> None:
        self._fs = fs
        self._resolver = resolver
        self._go_on = go_on
        self._linked: set[tuple[int, bytes]] = set()

    def keep_link(self, directory: int, name: bytes) -> None:
        """This name is of this layer, though its inode is older: a hard link."""
        self._linked.add((directory, name))

    def remove(self, directory: int, name: bytes, *, spare: bool) -> None:
        """A missing name is fine. Without recursion: trees may be deep."""
        found = self._fs.lookup(directory, name)
        if found is None:
            return
        inode, kind, fresh = found
        if kind != DIRECTORY:
            self._remove_file(
                directory, name, kind, spare and self._is_kept(directory, name, fresh)
            )
            return
        self.clear(inode, spare=spare)
        if not (spare and fresh):
            self._remove_if_empty(directory, name, inode)

    def clear(self, directory: int, *, spare: bool) -> None:
        """Remove all that is in a directory."""
        fs = self._fs
        stack: list[tuple[int, _Children]] = [(directory, iter(fs.listdir(directory)))]
        above_it = {directory}
        ends: list[tuple[int, bytes, int, bool]] = []
        while stack:
            self._go_on()
            here, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                if ends:
                    above, name, inode, keep = ends.pop()
                    above_it.discard(inode)
                    if not keep:
                        self._remove_if_empty(above, name, inode)
                continue
            name, inode, kind, fresh = child
            if kind == DIRECTORY:
                if inode in above_it:
                    raise FormatError(f"directory inode {inode} is inside itself")
                above_it.add(inode)
                stack.append((inode, iter(fs.listdir(inode))))
                ends.append((here, name, inode, spare and fresh))
            else:
                self._remove_file(here, name, kind, spare and self._is_kept(here, name, fresh))

    def _is_kept(self, directory: int, name: bytes, fresh: bool) -> bool:
        return fresh or (directory, name) in self._linked

    def _remove_file(self, directory: int, name: bytes, kind: int, keep: bool) -> None:
        if keep:
            return
        self._linked.discard((directory, name))
        self._fs.unlink(directory, name)
        if kind == SYMLINK:
            self._resolver.forget()

    def _remove_if_empty(self, directory: int, name: bytes, inode: int) -> None:
        if not self._fs.listdir(inode):
            self._fs.rmdir(directory, name)
            self._resolver.forget()
