"""Applying the archive of one OCI layer to a file system (spec: layer-apply; OCI: layer.md).

Where the reference is weak, this does what containerd does: symbolic links among the parents are
followed inside the root, targets of links stay as they are, owners and times of PAX count. What
this layer brings is never taken away by its own whiteouts, wherever they stand in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hybrid.build.ext4.native import DIRECTORY, ROOT, FileSystem, NativeError, translated
from hybrid.build.ext4.paths import Resolver
from hybrid.build.ext4.removal import Remover
from hybrid.build.ext4.xattrs import kept_xattrs
from hybrid.build.tar.entry import Entry, Kind, shown
from hybrid.build.tar.reader import TarReader
from hybrid.errors import FormatError

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_AT_ONCE = 1 << 20
"""Bytes of a file up to which its content is handed over in one call."""
_TYPES = {Kind.CHARACTER_DEVICE: 0o020000, Kind.BLOCK_DEVICE: 0o060000, Kind.FIFO: 0o010000}


@dataclass(slots=True)
class Applied:
    """What an archive had."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    """Of the content of files, without holes that the archive leaves out."""
    whiteouts: int = 0


def never_stop() -> None:
    """For an Applier that nobody wants to stop."""


class Applier:
    """Applies archives to ``fs``; ``size`` is that of the disk in bytes, for messages.

    ``go_on`` is called now and then where nothing is read from the archive for long: what it raises
    ends the work there.
    """

    def __init__(self, fs: FileSystem, size: int, go_on: Callable[[], None] = never_stop) -> None:
        self._fs = fs
        self._size = size
        self._resolver = Resolver(fs)
        self._remover = Remover(fs, self._resolver, go_on)

    def apply(self, reader: TarReader) -> Applied:
        """All entries, to the last byte of the stream. After an error the file system is of no use.

        Raises FormatError, UnsupportedError and StorageFullError, which name archive and entry.
        """
        applied = Applied()
        entry: Entry | None = None
        try:
            while True:
                self._plain_files(reader, applied)
                entry = reader.next()
                if entry is None:
                    break
                self._entry(reader, entry, applied)
                applied.entries += 1
        except NativeError as error:
            where = f"{reader.name}: {shown(entry.name)}" if entry else reader.name
            raise translated(error, where, self._size) from None
        reader.drain()
        return applied

    def _plain_files(self, reader: TarReader, applied: Applied) -> None:
        """Files with nothing special about them, whose directories are known: as many of them as
        follow each other in memory, all in one call.
        """
        try:
            used, files, size = self._fs.put_files(reader.ahead(), self._resolver.known)
        except NativeError as error:
            # It belongs to the entry that would have been the next one.
            reader.skip(self._fs.run_used)
            entry = reader.next()
            where = f"{reader.name}: {shown(entry.name)}" if entry else reader.name
            raise translated(error, where, self._size) from None
        reader.skip(used)
        applied.entries += files
        applied.files += files
        applied.bytes += size

    def _entry(self, reader: TarReader, entry: Entry, applied: Applied) -> None:
        name = entry.name.rstrip(b"/") or b"/"
        if WHITEOUT in name and self._whiteout(reader, name):
            applied.whiteouts += 1
            return
        try:
            directory, last = self._resolver.parent(name)
        except FormatError as error:
            raise FormatError(f"{reader.name}: {error.message}", offset=entry.offset) from None
        if not last:
            self._root(reader, entry)
        elif entry.kind is Kind.FILE:
            self._clear_way(directory, last)
            self._file(reader, entry, directory, last)
            applied.files += 1
            applied.bytes += entry.stored
        elif entry.kind is Kind.DIRECTORY:
            self._resolver.remember(name, self._directory(entry, directory, last))
        elif entry.kind is Kind.HARD_LINK:
            self._hard_link(reader, entry, directory, last)
        else:
            self._clear_way(directory, last)
            self._special(entry, directory, last)

    # --- Whiteouts

    def _whiteout(self, reader: TarReader, name: bytes) -> bool:
        """True if the name is a whiteout, or of the kind that only aufs has a use for."""
        last = name.rpartition(b"/")[2]
        if last == OPAQUE:
            directory = self._existing(reader, name[: -len(OPAQUE)] + b".")
            if directory is not None:
                self._remover.clear(directory, spare=True)
            return True
        if name.startswith(_AUFS) or b"/" + _AUFS in name:
            return True
        if not last.startswith(WHITEOUT):
            return False
        hidden = last[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise FormatError(f"{reader.name}: {shown(name)} is no valid whiteout")
        directory = self._existing(reader, name[: -len(last)] + b".")
        if directory is not None:
            self._remover.remove(directory, hidden, spare=True)
        return True

    def _existing(self, reader: TarReader, name: bytes) -> int | None:
        """The directory in which a whiteout stands, if it is there."""
        try:
            # One more element, which is not looked up, makes all the others parents.
            return self._resolver.find_parent(name + b"/x")[0]
        except FormatError as error:
            raise FormatError(f"{reader.name}: {error.message}", offset=reader.offset) from None

    # --- Entries by kind

    def _clear_way(self, directory: int, last: bytes) -> None:
        if self._fs.lookup(directory, last) is not None:
            self._remover.remove(directory, last, spare=False)

    def _root(self, reader: TarReader, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise FormatError(
                f"{reader.name}: an entry of type {entry.kind.name} for the root directory",
                offset=entry.offset,
            )
        self._merge(entry, ROOT)

    def _file(self, reader: TarReader, entry: Entry, directory: int, last: bytes) -> None:
        fs = self._fs
        if entry.sparse is None and entry.stored <= _AT_ONCE:
            inode = fs.put_file(
                directory, last, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns,
                reader.whole(),
            )  # fmt: skip
        else:
            inode = fs.begin_file(
                directory, last, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns,
                entry.size,
            )  # fmt: skip
            if entry.sparse is None:
                for part in reader.data():
                    fs.write(part)
            else:
                self._sparse(reader, entry, entry.sparse)
            fs.end_file()
        if entry.xattrs:
            fs.set_xattrs(inode, kept_xattrs(entry), False)

    def _sparse(self, reader: TarReader, entry: Entry, pieces: list[tuple[int, int]]) -> None:
        fs = self._fs
        at = 0
        data = reader.data()
        part = memoryview(b"")
        for offset, length in pieces:
            fs.skip(offset - at)
            at = offset + length
            while length:
                part = part or next(data)
                fs.write(part[:length])
                part, length = part[length:], length - len(part[:length])
        fs.skip(entry.size - at)

    def _directory(self, entry: Entry, directory: int, last: bytes) -> int:
        found = self._fs.lookup(directory, last)
        if found is not None and found[1] == DIRECTORY:
            self._merge(entry, found[0])
            return found[0]
        if found is not None:
            self._remover.remove(directory, last, spare=False)
        inode = self._fs.mkdir(
            directory, last, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns
        )
        if entry.xattrs:
            self._fs.set_xattrs(inode, kept_xattrs(entry), False)
        return inode

    def _merge(self, entry: Entry, inode: int) -> None:
        """The directory stays with what is in it, but its attributes are all the entry's."""
        self._fs.set_attributes(
            inode, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns
        )
        self._fs.set_xattrs(inode, kept_xattrs(entry), False)
        self._fs.mark_fresh(inode)

    def _hard_link(self, reader: TarReader, entry: Entry, directory: int, last: bytes) -> None:
        """The link, and the entry's attributes for the file that it leads to."""
        fs = self._fs
        inode, _, fresh = self._link_target(reader, entry)
        found = fs.lookup(directory, last)
        if found is None or found[0] != inode:
            if found is not None:
                self._remover.remove(directory, last, spare=False)
                # The target may have been in what was removed: then this says so.
                inode, _, fresh = self._link_target(reader, entry)
            fs.link(directory, last, inode)
        if not fresh:
            self._remover.keep_link(directory, last)
        fs.set_attributes(inode, entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns)
        if entry.xattrs:
            fs.set_xattrs(inode, kept_xattrs(entry), True)

    def _link_target(self, reader: TarReader, entry: Entry) -> tuple[int, int, bool]:
        message = f"{reader.name}: {shown(entry.name)}: "
        try:
            directory, last = self._resolver.find_parent(entry.link)
        except FormatError as error:
            raise FormatError(message + error.message, offset=entry.offset) from None
        found = self._fs.lookup(directory, last) if directory is not None and last else None
        if found is None:
            raise FormatError(
                f"{message}the target of the hard link, {shown(entry.link)}, does not exist",
                offset=entry.offset,
            )
        if found[1] == DIRECTORY:
            raise FormatError(
                f"{message}a hard link to a directory, {shown(entry.link)}", offset=entry.offset
            )
        return found

    def _special(self, entry: Entry, directory: int, last: bytes) -> None:
        owner = (entry.uid, entry.gid, entry.mtime, entry.mtime_ns)
        if entry.kind is Kind.SYMLINK:
            inode = self._fs.symlink(directory, last, 0o777, *owner, entry.link)
        else:
            inode = self._fs.mknod(
                directory, last, entry.mode | _TYPES[entry.kind], *owner, entry.major, entry.minor
            )
        if entry.xattrs:
            self._fs.set_xattrs(inode, kept_xattrs(entry), False)
