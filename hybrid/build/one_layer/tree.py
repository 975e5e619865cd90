"""A directory as an archive: names in order, parents first, hard links, holes, attributes.

Names are looked up in open directories and never through symbolic links, so that nobody who may
write below the directory can lead the reader out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.build.tar.entry import Entry, Kind, shown
from hybrid.build.tar.writer import END, entry_head, padding
from hybrid.core.device import Buffer
from hybrid.core.storage_errors import storage_error
from hybrid.errors import BusyError, HybridError, PermissionNeededError, UnsupportedError

WHITEOUT = b".wh."
READ_BYTES = 1 << 20
"""Bytes of a file that are read at a time."""
MAX_PIECES = 10_000
"""Pieces between the holes of a file; what is behind the last of them is kept with its holes as
zeros. Readers take maps of 1 MiB at most."""
_ATTRIBUTES = frozenset(
    (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
)
_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE, stat.S_IFBLK: Kind.BLOCK_DEVICE, stat.S_IFIFO: Kind.FIFO,
}  # fmt: skip
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENODATA)
_SECOND = 10**9
_SHOWN = 3


@dataclass
class LeftOut:
    """Names that are not in the archive: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: bytes) -> None:
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(shown(name))

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more} more" if more else "")


@dataclass(slots=True)
class _Level:
    """A directory on the way to where the reader is."""

    descriptor: int
    name: bytes
    """With a ``/`` at its end; empty for the root."""
    names: list[bytes]
    """Of what is in it and has not been read, the last one first."""
    status: os.stat_result


class TreeArchive:
    """The archive of one directory. Make a new one for each reading.

    ``owner`` (uid, gid) takes the place of all owners. Sockets are left out, and so is what is in
    directories of other file systems; ``sockets`` and ``mounts`` tell.
    """

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        self.sockets = LeftOut()
        self.mounts = LeftOut()
        self._root = root
        self._owner = owner
        self._device = 0
        self._links: dict[tuple[int, int], tuple[bytes, int]] = {}
        """Files with several names, by device and inode: the first name, and how many are left."""

    def pieces(self) -> Iterator[Buffer]:
        """The bytes, in pieces of any size up to READ_BYTES or a little more. For a thread.

        Memory: the names of the directories on the way, and files with more names than were seen.
        Raises BusyError for what changes while it is read, PermissionNeededError,
        NotFoundError (the directory), UnsupportedError (names with a meaning of their own), and
        StorageFailedError.
        """
        levels: list[_Level] = []
        try:
            with self._reading(b""):
                descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            levels.append(self._level(descriptor, b""))
            self._device = levels[0].status.st_dev
            yield self._directory_head(levels[0])
            while levels:
                level = levels[-1]
                if level.names:
                    yield from self._member(levels, level.names.pop())
                    continue
                with self._reading(level.name):
                    self._check_same(level.name, level.status, os.fstat(level.descriptor))
                os.close(levels.pop().descriptor)
            yield END
        finally:
            for level in levels:
                os.close(level.descriptor)

    # -- Directories -----------------------------------------------------------------------------

    def _level(self, descriptor: int, name: bytes) -> _Level:
        """Takes the descriptor over, also if this fails."""
        try:
            with self._reading(name):
                status = os.fstat(descriptor)
                names = [os.fsencode(found) for found in os.listdir(descriptor)]
        except BaseException:
            os.close(descriptor)
            raise
        return _Level(descriptor, name, sorted(names, reverse=True), status)

    def _directory_head(self, level: _Level) -> bytes:
        entry = self._entry(level.name or b"./", Kind.DIRECTORY, level.status)
        with self._reading(level.name):
            entry.xattrs = _xattrs(level.descriptor)
        return entry_head(entry)

    def _member(self, levels: list[_Level], last: bytes) -> Iterator[Buffer]:
        above = levels[-1]
        name = above.name + last
        if last.startswith(WHITEOUT):
            raise UnsupportedError(
                f"{self._shown(name)}: names that begin with .wh. stand for deleted files in layers"
            )
        with self._reading(name):
            status = os.stat(last, dir_fd=above.descriptor, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            self.sockets.add(name)
        elif kind is Kind.DIRECTORY:
            yield from self._directory(levels, name, last, status)
        elif (first := self._seen(name, status)) is not None:
            entry = self._entry(name, Kind.HARD_LINK, status)
            entry.link = first
            yield entry_head(entry)
        elif kind is Kind.FILE:
            yield from self._file(above, name, last, status)
        else:
            yield self._special(above, name, last, kind, status)

    def _directory(
        self, levels: list[_Level], name: bytes, last: bytes, status: os.stat_result
    ) -> Iterator[Buffer]:
        descriptor = self._open(levels[-1], name, last, os.O_DIRECTORY)
        level = self._level(descriptor, name + b"/")
        levels.append(level)
        self._check_same(name, status, level.status)
        if status.st_dev != self._device:
            self.mounts.add(name)
            level.names.clear()
        yield self._directory_head(level)

    # -- Everything else -------------------------------------------------------------------------

    def _file(
        self, above: _Level, name: bytes, last: bytes, status: os.stat_result
    ) -> Iterator[Buffer]:
        # Should it have become a fifo meanwhile, opening it must not wait for a writer.
        descriptor = self._open(above, name, last, os.O_NONBLOCK)
        try:
            with self._reading(name):
                self._check_same(name, status, os.fstat(descriptor))
                entry = self._entry(name, Kind.FILE, status)
                entry.size = status.st_size
                entry.xattrs = _xattrs(descriptor)
                pieces = [(0, entry.size)] if entry.size else []
                if status.st_blocks * 512 < entry.size:
                    pieces = _pieces_between_holes(descriptor, entry.size)
                if pieces != [(0, entry.size)] and entry.size:
                    entry.sparse = pieces
                entry.stored = sum(length for _, length in pieces)
            yield entry_head(entry)
            for offset, length in pieces:
                for at in range(offset, offset + length, READ_BYTES):
                    yield self._read(descriptor, name, at, min(READ_BYTES, offset + length - at))
            yield padding(entry.stored)
            with self._reading(name):
                self._check_same(name, status, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, name: bytes, offset: int, length: int) -> bytes:
        parts = []
        while length:
            with self._reading(name):
                part = os.pread(descriptor, length, offset)
            if not part:
                raise self._changed(name)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _special(
        self, above: _Level, name: bytes, last: bytes, kind: Kind, status: os.stat_result
    ) -> bytes:
        entry = self._entry(name, kind, status)
        with self._reading(name):
            if kind is Kind.SYMLINK:
                entry.link = os.readlink(last, dir_fd=above.descriptor)
            elif kind is not Kind.FIFO:
                entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            entry.xattrs = _xattrs_of_name(above.descriptor, last)
        return entry_head(entry)

    def _entry(self, name: bytes, kind: Kind, status: os.stat_result) -> Entry:
        seconds, nanoseconds = divmod(status.st_mtime_ns, _SECOND)
        uid, gid = self._owner or (status.st_uid, status.st_gid)
        mode = stat.S_IMODE(status.st_mode)
        return Entry(name, kind, mode, uid, gid, seconds, nanoseconds, 0, b"", 0)

    def _seen(self, name: bytes, status: os.stat_result) -> bytes | None:
        """The name that this file had before; it is forgotten when all names were seen."""
        if status.st_nlink == 1:
            return None
        key = (status.st_dev, status.st_ino)
        first, left = self._links.get(key, (b"", status.st_nlink))
        if left > 1:
            self._links[key] = (first or name, left - 1)
        else:
            self._links.pop(key, None)
        return first or None

    # -- Errors ----------------------------------------------------------------------------------

    def _open(self, above: _Level, name: bytes, last: bytes, flags: int) -> int:
        with self._reading(name):
            flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(last, flags, dir_fd=above.descriptor)

    def _check_same(self, name: bytes, one: os.stat_result, other: os.stat_result) -> None:
        """Reading changes none of this."""
        for status in ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns"):
            if getattr(one, status) != getattr(other, status):
                raise self._changed(name)

    def _changed(self, name: bytes) -> BusyError:
        return changed(self._shown(name))

    def _shown(self, name: bytes) -> str:
        return shown((os.fsencode(self._root) + b"/" + name).rstrip(b"/") or b"/")

    @contextmanager
    def _reading(self, name: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(name, error) from error

    def _failure(self, name: bytes, error: OSError) -> HybridError:
        if name and error.errno in _GONE:
            return self._changed(name)
        text = f"cannot read {self._shown(name)}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionNeededError(f"{text}: {error.strerror}", hint="try with sudo")
        return storage_error(error, text)


def changed(what: str) -> BusyError:
    """For what is not as it was when it was looked at first."""
    return BusyError(
        f"{what} was changed while it was read",
        hint="build from a copy or a snapshot that nobody writes to",
    )


def _pieces_between_holes(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Offset and length of each piece of data, as the file system has them. Raises OSError."""
    pieces: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole from here on
        at = os.lseek(descriptor, start, os.SEEK_HOLE) if len(pieces) < MAX_PIECES - 1 else size
        at = min(at, size)
        if start < at:
            pieces.append((start, at - start))
    return pieces


def _xattrs(descriptor: int) -> dict[bytes, bytes]:
    """Those that belong to the file, and not to this machine or to whoever reads. Raises OSError.

    ``trusted.*`` can be seen by root only, so the archive would depend on who makes it; the labels
    of security modules fit the policy of one machine.
    """
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        return _none_at_all(error)
    kept = sorted(filter(_is_kept, map(os.fsencode, names)))
    return {name: os.getxattr(descriptor, name) for name in kept}


def _xattrs_of_name(directory: int, last: bytes) -> dict[bytes, bytes]:
    """The same of what cannot be opened."""
    path = b"/proc/self/fd/%d/%s" % (directory, last)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        return _none_at_all(error)
    kept = sorted(filter(_is_kept, map(os.fsencode, names)))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}


def _none_at_all(error: OSError) -> dict[bytes, bytes]:
    if error.errno == errno.EOPNOTSUPP:
        return {}
    raise error


def _is_kept(name: bytes) -> bool:
    return name in _ATTRIBUTES or name.startswith(b"user.")
