"""Members of a tar file on disk, read at random: the file below a docker archive."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path

import trio

from hybrid.core.byte_stream import ByteStream, SourceStream
from hybrid.core.source import FileSource
from hybrid.errors import FormatError, NotFoundError, UnsupportedError

MAX_MEMBERS = 100_000
MAX_LINKS = 8
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


class ArchiveFile:
    """An open archive, with an index of its members. Making one reads all headers, so: in a thread.

    Raises NotFoundError, PermissionNeededError, FormatError, or UnsupportedError if it is
    compressed as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FileSource(path)
        head = bytes(self._file.pread_nowait(0, min(8, self._file.size)))
        for magic, name in COMPRESSED.items():
            if head.startswith(magic):
                raise UnsupportedError(
                    f"{path} is compressed with {name}", hint="uncompress the archive first"
                )
        self._members = self._index()

    def size(self, name: str) -> int:
        """Bytes of a member, through links."""
        return self._find(name).size

    def stream(self, name: str) -> ByteStream:
        """The bytes of a member. Needs the archive as long as it is read."""
        member = self._find(name)
        source = FileSource(self._path)
        stream = SourceStream(source, member.offset_data, member.size)
        stream.name = f"{name} of {self._path}"
        return stream

    async def head(self, name: str, length: int) -> bytes:
        """The first bytes of a member."""
        member = self._find(name)
        length = min(length, member.size)
        return await trio.to_thread.run_sync(self._pread, member.offset_data, length)

    async def read(self, name: str, limit_bytes: int) -> bytes:
        """A whole small member. Raises FormatError if it is longer than ``limit_bytes``."""
        member = self._find(name)
        if member.size > limit_bytes:
            raise FormatError(f"{name} of {self._path} is longer than {limit_bytes} bytes")
        return await trio.to_thread.run_sync(self._pread, member.offset_data, member.size)

    async def aclose(self) -> None:
        await self._file.aclose()

    def _pread(self, offset: int, length: int) -> bytes:
        return bytes(self._file.pread_nowait(offset, length))

    def _index(self) -> dict[str, tarfile.TarInfo]:
        members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(self._path, "r:") as archive:
                for number, member in enumerate(archive):
                    if number >= MAX_MEMBERS:
                        raise UnsupportedError(
                            f"{self._path} has more than {MAX_MEMBERS} members",
                            hint="is it an archive of 'docker save'?",
                        )
                    members[posixpath.normpath(member.name)] = member
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise FormatError(
                f"{self._path} is no archive of 'docker save': {error}",
                hint="it must be a whole tar file",
            ) from error
        return members

    def _find(self, name: str) -> tarfile.TarInfo:
        current = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            member = self._members.get(current)
            if member is None:
                raise NotFoundError(
                    f"{self._path} has no member {name!a}",
                    hint="is it a whole archive of 'docker save'?",
                )
            if member.issym():
                current = posixpath.normpath(
                    posixpath.join(posixpath.dirname(current), member.linkname)
                )
            elif member.islnk():
                current = posixpath.normpath(member.linkname)
            else:
                return self._checked(member, name)
        raise FormatError(f"{self._path}: {name!a} is a link that leads nowhere")

    def _checked(self, member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
        if not member.isreg() or member.issparse():
            raise FormatError(f"{self._path}: {name!a} is no plain file")
        if member.offset_data + member.size > self._file.size:
            raise FormatError(f"{self._path} ends within {name!a}", hint="copy it again")
        return member
