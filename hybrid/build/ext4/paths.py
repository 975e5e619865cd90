"""Names of an archive's entries: cleaned, and resolved inside the root of the file system.

As containerd has it: symbolic links among the parents are followed, but ``/`` is always the root of
the image and ``..`` of it is itself, as for a process whose root it is. Nothing leads outside.
"""

from __future__ import annotations

from hybrid.build.ext4.native import DIRECTORY, ROOT, SYMLINK, FileSystem
from hybrid.build.tar.entry import shown
from hybrid.errors import FormatError

_MAX_LINKS = 40
"""Symbolic links followed for one name, as in Linux."""
_CACHE_LIMIT = 20_000


def clean(name: bytes) -> list[bytes]:
    """The elements of a name, without ``.`` and ``..``; none: the root.

    Raises FormatError for a relative name that leads above the root.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
            elif not name.startswith(b"/"):
                raise FormatError(f"{shown(name)} leads out of the image")
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


class Resolver:
    """From names to inodes. Remembers directories, since neighbours follow each other."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.known: dict[bytes, int] = {}
        """Directories by their names, without a ``/`` at the end."""

    def parent(self, name: bytes) -> tuple[int, bytes]:
        """The directory of a name, made with its parents where missing, and the last element.

        The last element is empty for the root itself. Raises FormatError for names that leave the
        root, run through something that is no directory, or have too many symbolic links.
        """
        head, _, last = name.rpartition(b"/")
        known = self.known.get(head)
        if known is not None and last not in (b"", b".", b".."):
            return known, last
        parts = clean(name)
        if not parts:
            return ROOT, b""
        found = self._walk(parts[:-1], name, create=True)
        assert found is not None
        if last == parts[-1]:
            self.remember(head, found)
        return found, parts[-1]

    def find_parent(self, name: bytes) -> tuple[int | None, bytes]:
        """As ``parent``, but nothing is made: None where the directory is missing, or is none."""
        parts = clean(name)
        if not parts:
            return ROOT, b""
        return self._walk(parts[:-1], name, create=False), parts[-1]

    def remember(self, name: bytes, inode: int) -> None:
        """``name``, without a ``/`` at its end, is the directory ``inode``."""
        if len(self.known) >= _CACHE_LIMIT:
            self.known.clear()
        self.known[name] = inode

    def forget(self) -> None:
        """A directory or a symbolic link is gone: names may lead elsewhere from now on."""
        self.known.clear()

    def _walk(self, parts: list[bytes], name: bytes, *, create: bool) -> int | None:
        fs = self._fs
        way = [ROOT]
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            found = fs.lookup(way[-1], part)
            if found is None:
                if not create:
                    return None
                way.append(fs.mkdir(way[-1], part, 0o755, 0, 0, 0, 0))
            elif found[1] == DIRECTORY:
                way.append(found[0])
            elif found[1] == SYMLINK:
                links += 1
                if links > _MAX_LINKS:
                    raise FormatError(f"{shown(name)}: too many symbolic links on the way")
                target = fs.readlink(found[0])
                if target.startswith(b"/"):
                    way = [ROOT]
                todo += target.split(b"/")[::-1]
            elif create:
                raise FormatError(f"{shown(name)}: {shown(part)} on the way is no directory")
            else:
                return None
        return way[-1]
