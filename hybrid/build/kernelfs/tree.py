"""The methods of ``ext4.native.FileSystem`` on a directory where the kernel has a file system.

Files are told by inode numbers, as there; the number ROOT stands for the directory itself. Names
never lead through symbolic links: each system call gets the descriptor of a directory, and one name
in it. (The applier resolves links by itself, inside the root.)

What the kernel does by itself is not what archives want: it changes the times of directories, lets
new files inherit a default ACL and the group of a set-group-id directory, and takes capabilities
and set-id bits off files whose owner changes. So directories have no default ACL until ``finish``,
which sets their times as well, and owners are set before modes, and both before attributes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from hybrid.build.ext4.native import DIRECTORY, ROOT, SYMLINK, NativeError
from hybrid.core.device import Buffer

_KINDS = {
    stat.S_IFREG: 1, stat.S_IFDIR: DIRECTORY, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6, stat.S_IFLNK: SYMLINK,
}  # fmt: skip
_OPEN_DIRECTORIES = 128
_PLACES = 4096
"""Files whose names are remembered; only that which was looked up last is needed."""
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITY = b"security.capability"
_LABEL = "security.selinux"
"""A kernel that labels files lets nobody take a label away."""
_DEFAULT_ACL = b"system.posix_acl_default"
_ROOM_BLOCKS = 64
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LIMITS = (
    errno.ENAMETOOLONG, errno.EMLINK, errno.EFBIG, errno.E2BIG, errno.ERANGE, errno.EOVERFLOW,
    errno.EOPNOTSUPP, errno.EINVAL,
)  # fmt: skip


class KernelTree:
    """For one archive, in one thread: what is there when it begins is of the layers below.

    Takes root. Every method may raise NativeError.
    """

    def __init__(self, root: int) -> None:
        """``root``: a descriptor of the root directory, which stays the caller's."""
        self._root = root
        self._root_number = os.fstat(root).st_ino
        self._open: OrderedDict[int, int] = OrderedDict()
        """Descriptors of directories, the latest last."""
        self._directories: dict[int, tuple[int, bytes]] = {}
        """Where directories are: the one above, and the name in it."""
        self._files: dict[int, tuple[int, bytes]] = {}
        """The same for what is no directory, as it was seen last."""
        self._fresh: set[int] = set()
        self._times: dict[int, tuple[int, int]] = {}
        """What directories whose times the kernel has changed, or will, are to have in the end."""
        self._acls: dict[int, bytes] = {}
        """The default ACLs that directories are to have in the end."""
        self._file = -1
        self._left = (0, 0, 0, 0, 0)
        self._has_owner = False
        self._size = 0

    def finish(self) -> None:
        """Set the default ACLs and the times of directories."""
        with self._translated():
            for inode, acl in self._acls.items():
                os.setxattr(self._path(inode), _DEFAULT_ACL, acl)
            for inode, (seconds, ns) in self._times.items():
                time = seconds * 10**9 + ns
                os.utime(self._directory(inode), ns=(time, time))
        self._acls.clear()
        self._times.clear()

    def close(self) -> None:
        """Give all descriptors back."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # -- as native.FileSystem --------------------------------------------------------------------

    def lookup(self, directory: int, name: bytes) -> tuple[int, int, bool] | None:
        with self._translated():
            try:
                found = os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False)
            except FileNotFoundError:
                return None
            return self._seen(directory, name, found.st_ino, found.st_mode)

    def listdir(self, directory: int) -> list[tuple[bytes, int, int, bool]]:
        with self._translated():
            above = self._directory(directory)
            # btrfs shows what was there when the descriptor was opened.
            fresh_one = os.open(".", _DIRECTORY_FLAGS, dir_fd=above)
            try:
                names = [os.fsencode(text) for text in os.listdir(fresh_one)]
            finally:
                os.close(fresh_one)
            listed = []
            for name in names:
                found = os.stat(name, dir_fd=above, follow_symlinks=False)
                inode, kind, fresh = self._seen(directory, name, found.st_ino, found.st_mode)
                listed.append((name, inode, kind, fresh))
            return listed

    def readlink(self, inode: int) -> bytes:
        directory, name = self._files[inode]
        with self._translated():
            return os.readlink(name, dir_fd=self._directory(directory))

    def mkdir(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int
    ) -> int:
        with self._creating(directory) as above:
            os.mkdir(name, 0o700, dir_fd=above)
            inode = self._made(directory, name)
            self._own(above, name, uid, gid)
            os.chmod(self._directory(inode), mode & 0o7777)
        self._times[inode] = (seconds, ns)
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
        with self._creating(directory) as above:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(name, flags, 0o600, dir_fd=above)
            found = os.fstat(self._file)
            self._note(directory, name, found.st_ino)
        self._left = (mode, uid, gid, seconds, ns)
        self._has_owner = (found.st_uid, found.st_gid) == (uid, gid)
        self._size = 0
        return found.st_ino

    def write(self, data: Buffer) -> None:
        view = memoryview(data)
        with self._translated():
            while view:
                count = os.pwrite(self._file, view, self._size)
                self._size += count
                view = view[count:]

    def skip(self, length: int) -> None:
        self._size += length

    def end_file(self) -> None:
        file, self._file = self._file, -1
        mode, uid, gid, seconds, ns = self._left
        try:
            with self._translated():
                # A hole at the end.
                if os.fstat(file).st_size < self._size:
                    os.ftruncate(file, self._size)
                if not self._has_owner:
                    os.chown(file, uid, gid)
                os.chmod(file, mode & 0o7777)
                time = seconds * 10**9 + ns
                os.utime(file, ns=(time, time))
        finally:
            os.close(file)

    def symlink(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        target: bytes,
    ) -> int:  # fmt: skip
        with self._creating(directory) as above:
            try:
                os.symlink(target, name, dir_fd=above)
            except FileNotFoundError:
                raise NativeError("limit", "a symbolic link without a target") from None
            inode = self._made(directory, name)
            self._own(above, name, uid, gid)
            self._set_time(inode, seconds, ns)
        return inode

    def mknod(
        self, directory: int, name: bytes, mode: int, uid: int, gid: int, seconds: int, ns: int,
        major: int, minor: int,
    ) -> int:  # fmt: skip
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise NativeError("limit", f"a device with the number {major}:{minor}")
        with self._creating(directory) as above:
            try:
                device = os.makedev(major, minor)
                os.mknod(name, stat.S_IFMT(mode) | 0o600, device, dir_fd=above)
            except OSError as error:
                # xfs has majors below 512, and minors of 18 bits.
                if error.errno == errno.EINVAL:
                    raise NativeError(
                        "limit", f"a device with the number {major}:{minor}"
                    ) from None
                raise
            inode = self._made(directory, name)
            self._own(above, name, uid, gid)
            self._set_mode(above, name, mode)
            self._set_time(inode, seconds, ns)
        return inode

    def link(self, directory: int, name: bytes, inode: int) -> None:
        source, old_name = self._files[inode]
        with self._creating(directory) as above:
            # The target first: opening one directory may close another.
            os.link(
                old_name, name, src_dir_fd=self._directory(source, keep=above), dst_dir_fd=above,
                follow_symlinks=False,
            )  # fmt: skip
        self._files[inode] = (directory, name)

    def unlink(self, directory: int, name: bytes) -> None:
        with self._creating(directory) as above:
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            os.unlink(name, dir_fd=above)
        if found.st_nlink == 1:
            self._forget(found.st_ino)

    def rmdir(self, directory: int, name: bytes) -> None:
        with self._creating(directory) as above:
            inode = os.stat(name, dir_fd=above, follow_symlinks=False).st_ino
            descriptor = self._open.pop(inode, None)
            if descriptor is not None:
                os.close(descriptor)
            os.rmdir(name, dir_fd=above)
        self._forget(inode)

    def set_attributes(
        self, inode: int, mode: int, uid: int, gid: int, seconds: int, ns: int
    ) -> None:
        with self._translated():
            if inode == ROOT or inode in self._directories:
                self._prepare(inode)
                descriptor = self._directory(inode)
                os.chown(descriptor, uid, gid)
                os.chmod(descriptor, mode & 0o7777)
                self._times[inode] = (seconds, ns)
                return
            directory, name = self._files[inode]
            above = self._directory(directory)
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            if (found.st_uid, found.st_gid) != (uid, gid):
                path = self._path(inode)
                capability = None
                with contextlib.suppress(OSError):  # it has none, or cannot have any
                    capability = os.getxattr(path, _CAPABILITY, follow_symlinks=False)
                self._own(above, name, uid, gid)
                if capability is not None:
                    os.setxattr(path, _CAPABILITY, capability, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                self._set_mode(above, name, mode)
            self._set_time(inode, seconds, ns)

    def set_xattrs(self, inode: int, attributes: dict[bytes, bytes], keep: bool) -> None:
        with self._translated():
            path = self._path(inode)
            if not keep:
                for text in os.listxattr(path, follow_symlinks=False):
                    if os.fsencode(text) not in attributes:
                        self._remove_attribute(path, text)
                self._acls.pop(inode, None)
            for name, value in attributes.items():
                try:
                    os.setxattr(path, name, value, follow_symlinks=False)
                except OSError as error:
                    # A hard link to what can have none of these: see ``kept_xattrs``.
                    if error.errno == errno.EPERM and name.startswith(b"user."):
                        continue
                    raise self._refused(error, name) from error
            if _DEFAULT_ACL in attributes:
                self._take_acl(inode)

    def mark_fresh(self, inode: int) -> None:
        self._fresh.add(inode)

    # -- inner -----------------------------------------------------------------------------------

    def _directory(self, inode: int, *, keep: int = -1) -> int:
        """A descriptor of a directory, good until others are opened, all but ``keep``."""
        if inode == ROOT:
            return self._root
        found = self._open.get(inode)
        if found is not None:
            self._open.move_to_end(inode)
            return found
        # From the next open one down: without recursion, since trees may be deep.
        way: list[int] = []
        here = inode
        while here != ROOT and here not in self._open:
            way.append(here)
            here = self._directories[here][0]
        above = self._root if here == ROOT else self._open[here]
        for step in reversed(way):
            opened = os.open(self._directories[step][1], _DIRECTORY_FLAGS, dir_fd=above)
            self._open[step] = above = opened
            if len(self._open) > _OPEN_DIRECTORIES:
                self._close_oldest(keep, opened)
        return above

    def _close_oldest(self, *keep: int) -> None:
        oldest = next(inode for inode, number in self._open.items() if number not in keep)
        os.close(self._open.pop(oldest))

    @contextlib.contextmanager
    def _creating(self, directory: int) -> Iterator[int]:
        """What is in a directory changes in the block; the directory keeps its time."""
        with self._translated():
            self._prepare(directory)
            yield self._directory(directory)

    def _prepare(self, directory: int) -> None:
        """Before the kernel changes a directory."""
        if directory not in self._times:
            found = os.fstat(self._directory(directory))
            self._times[directory] = divmod(found.st_mtime_ns, 10**9)
            self._take_acl(directory)

    def _take_acl(self, directory: int) -> None:
        path = self._path(directory)
        try:
            self._acls[directory] = os.getxattr(path, _DEFAULT_ACL)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return
            raise
        os.removexattr(path, _DEFAULT_ACL)

    def _made(self, directory: int, name: bytes) -> int:
        found = os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False)
        self._note(directory, name, found.st_ino, is_directory=stat.S_ISDIR(found.st_mode))
        return found.st_ino

    def _note(self, directory: int, name: bytes, inode: int, *, is_directory: bool = False) -> None:
        """A new file. Its number may have been that of one that was removed."""
        self._forget(inode)
        self._fresh.add(inode)
        if is_directory:
            self._directories[inode] = (directory, name)
        else:
            self._place(inode, directory, name)

    def _seen(self, directory: int, name: bytes, number: int, mode: int) -> tuple[int, int, bool]:
        inode = ROOT if number == self._root_number else number
        kind = _KINDS[stat.S_IFMT(mode)]
        if kind == DIRECTORY:
            self._directories[inode] = (directory, name)
        else:
            self._place(inode, directory, name)
        return inode, kind, inode in self._fresh

    def _place(self, inode: int, directory: int, name: bytes) -> None:
        if len(self._files) >= _PLACES:
            self._files.clear()
        self._files[inode] = (directory, name)

    def _forget(self, inode: int) -> None:
        self._fresh.discard(inode)
        self._times.pop(inode, None)
        self._acls.pop(inode, None)
        self._files.pop(inode, None)
        self._directories.pop(inode, None)

    def _path(self, inode: int) -> bytes:
        """For calls that take no descriptor of a directory."""
        if inode == ROOT or inode in self._directories:
            return b"/proc/self/fd/%d/." % self._directory(inode)
        directory, name = self._files[inode]
        return b"/proc/self/fd/%d/%s" % (self._directory(directory), name)

    def _own(self, above: int, name: bytes, uid: int, gid: int) -> None:
        os.chown(name, uid, gid, dir_fd=above, follow_symlinks=False)

    def _set_mode(self, above: int, name: bytes, mode: int) -> None:
        # Not a symbolic link, so there is none to follow.
        os.chmod(name, mode & 0o7777, dir_fd=above)

    def _set_time(self, inode: int, seconds: int, ns: int) -> None:
        directory, name = self._files[inode]
        time = seconds * 10**9 + ns
        above = self._directory(directory)
        os.utime(name, ns=(time, time), dir_fd=above, follow_symlinks=False)

    def _remove_attribute(self, path: bytes, text: str) -> None:
        try:
            os.removexattr(path, text, follow_symlinks=False)
        except OSError as error:
            if (error.errno, text) != (errno.EACCES, _LABEL):
                raise

    def _refused(self, error: OSError, name: bytes) -> Exception:
        """Why an attribute cannot be set."""
        text = name.decode(errors="replace")
        is_acl = name.startswith(b"system.posix_acl_")
        if error.errno == errno.EINVAL or (is_acl and error.errno == errno.EOPNOTSUPP):
            return NativeError("format", f"invalid value of the extended attribute {text}")
        # ext4 says of too many attributes that there is no space.
        if error.errno == errno.ENOSPC and os.statvfs(self._root).f_bavail > _ROOM_BLOCKS:
            return NativeError("limit", f"no room for the extended attribute {text} of this file")
        return error

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _native(error) from error


def _native(error: OSError) -> NativeError:
    text = error.strerror or str(error)
    if error.errno in _FULL:
        return NativeError("full", text)
    if error.errno in _LIMITS:
        return NativeError("limit", text)
    return NativeError("system", f"the kernel says: {text}")
