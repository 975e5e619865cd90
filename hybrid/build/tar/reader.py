"""TarReader: the entries of an archive and their data, in one pass over a stream."""

from __future__ import annotations

from collections.abc import Iterator

from hybrid.build.tar import pax, sparse
from hybrid.build.tar.entry import Entry, Kind, shown
from hybrid.build.tar.header import BLOCK, ZEROS, Header, parse_header
from hybrid.build.tar.numbers import decimal, timestamp
from hybrid.build.tar.window import Read, Window
from hybrid.errors import FormatError, UnsupportedError

MAX_SPECIAL = 1 << 20
"""Bytes of a PAX header, a long name or a sparse map: what Go's reader allows, too."""
MAX_GLOBAL = 1 << 16
"""Bytes of all global PAX headers together, which count for each entry anew. Usual: below 100."""
MAX_ID = (1 << 32) - 2
"""The largest uid or gid; 2^32 - 1 means "none" to Linux."""
MAX_SIZE = (1 << 63) - 1

_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE, b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK, b"3": Kind.CHARACTER_DEVICE, b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY, b"6": Kind.FIFO, b"D": Kind.DIRECTORY,
}  # fmt: skip
_SPECIAL = frozenset(b"xXgLKV"[i : i + 1] for i in range(6))


class TarReader:
    """Reads an archive of any dialect (see the package) from ``read(n)``.

    For each entry that iterating gives, ``data()`` or ``whole()`` give its content; what is not
    taken is skipped. All raise FormatError with the offset for damage and truncation, and
    UnsupportedError for types that no layer has. ``name`` is what messages call the archive.
    """

    def __init__(self, read: Read, name: str) -> None:
        self.name = name
        self._window = Window(read, name)
        self._left = 0  # stored bytes of the entry that were not taken
        self._padding = 0
        self._global: pax.Records = []

    @property
    def offset(self) -> int:
        """Bytes of the stream that were used so far."""
        return self._window.offset

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def ahead(self) -> memoryview:
        """The archive from the next header on, as far as it is in memory. Whoever understands what
        is there may ``skip`` it. Empty if something that came before counts for all entries.
        """
        self._end_entry()
        return memoryview(b"") if self._global else self._window.ahead()

    def skip(self, length: int) -> None:
        """Pass over whole entries, which ``ahead`` has shown."""
        self._window.take(length)

    def whole(self) -> memoryview:
        """All stored data of the entry at once. For small files."""
        left, self._left = self._left, 0
        return self._window.exactly(left, "the data of a file")

    def data(self) -> Iterator[memoryview]:
        """The stored data of the entry, in pieces of at most 1 MiB or so."""
        while self._left:
            part = self._window.piece(self._left, "the data of a file")
            self._left -= len(part)
            yield part

    def drain(self) -> None:
        """Read what follows the end of the archive: a digest covers it as well."""
        while self._window.take(BLOCK * 128):
            pass

    def next(self) -> Entry | None:
        """The next entry; None at the end of the archive."""
        records: pax.Records = []
        long_name = long_link = None
        start = None
        while (header := self._header()) is not None:
            offset = self._window.offset - BLOCK
            start = offset if start is None else start
            if header.type not in _SPECIAL:
                if not records and not self._global and header.type != b"S":
                    return self._plain(header, long_name, long_link, offset)
                with _placed(self.name, start):
                    return self._extended(header, records, long_name, long_link, offset)
            body = self._special(header, offset)
            if header.type == b"L":
                long_name = body.split(b"\0", 1)[0]
            elif header.type == b"K":
                long_link = body.split(b"\0", 1)[0]
            elif header.type in b"xX":
                with _placed(self.name, offset):
                    records += pax.parse_records(body)
            elif header.type == b"g":
                with _placed(self.name, offset):
                    self._global += pax.parse_records(body)
                    if sum(len(key) + len(value) for key, value in self._global) > MAX_GLOBAL:
                        raise FormatError("global PAX headers of more than 64 KiB")
        if records or long_name is not None or long_link is not None:
            raise self._window.truncated("a header: the entry that it describes is missing")
        return None

    # --- Headers

    def _end_entry(self) -> None:
        """Pass over what is left of an entry's data."""
        for _ in self.data():
            pass
        if self._padding:
            self._window.exactly(self._padding, "the data of a file")
            self._padding = 0

    def _header(self) -> Header | None:
        """The next header; None at the end: two blocks of zeros, or no more bytes."""
        window = self._window
        self._end_entry()
        zeros = 0
        while True:
            block = bytes(window.take(BLOCK))
            if not block:
                return None
            if len(block) < BLOCK:
                raise window.truncated("a header")
            if block != ZEROS:
                break
            zeros += 1
            if zeros == 2:
                return None
        with _placed(self.name, window.offset - BLOCK):
            header = parse_header(block)
            if not 0 <= header.size <= MAX_SIZE:
                raise FormatError(f"impossible size {header.size}")
        return header

    def _special(self, header: Header, offset: int) -> bytes:
        if header.size > MAX_SPECIAL:
            raise FormatError(
                f"{self.name}: a header of {header.size} bytes at byte {offset}"
                f" (more than {MAX_SPECIAL})",
                offset=offset,
            )
        body = bytes(self._window.exactly(header.size, "a header"))
        self._window.exactly(-header.size % BLOCK, "a header")
        return body

    # --- Entries

    def _plain(
        self, header: Header, long_name: bytes | None, long_link: bytes | None, offset: int
    ) -> Entry:
        """An entry that only its own header (and GNU's long names) describe: the usual one."""
        name = header.name if long_name is None else long_name
        link = header.link if long_link is None else long_link
        kind = _KINDS.get(header.type)
        if kind is None:
            raise UnsupportedError(
                f"{self.name}: {shown(name)} at byte {offset} is of type {header.type!r}",
                hint="layers have files, links, directories, devices and fifos only",
            )
        if kind is Kind.FILE and header.type == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY
        if not (0 <= header.uid <= MAX_ID and 0 <= header.gid <= MAX_ID):
            raise FormatError(
                f"{self.name}: {shown(name)}: impossible owner {header.uid}:{header.gid}",
                offset=offset,
            )
        size = header.size if kind is Kind.FILE else 0
        entry = Entry(
            name, kind, header.mode & 0o7777, header.uid, header.gid, header.mtime, 0, size,
            link if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b"", offset,
        )  # fmt: skip
        if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
            with _placed(self.name, offset):
                entry.major, entry.minor = header.device
        self._set_stored(entry, header.size if header.type == b"D" else size)
        return entry

    def _set_stored(self, entry: Entry, stored: int) -> None:
        entry.stored = self._left = stored
        self._padding = -stored % BLOCK

    def _extended(
        self,
        header: Header,
        records: pax.Records,
        long_name: bytes | None,
        long_link: bytes | None,
        offset: int,
    ) -> Entry:
        # A local record wins over a global one; an empty value takes the record away.
        merged = self._global + records if self._global else records
        values = dict(merged)
        name = _text(values, b"path") or long_name
        link = _text(values, b"linkpath") or long_link
        for key in (b"uid", b"gid", b"size"):
            if values.get(key):
                setattr(header, key.decode(), decimal(values[key], key.decode()))
        if header.size > MAX_SIZE:
            raise FormatError(f"impossible size {header.size}")
        entry = self._plain(header, name, link, offset)
        if values.get(b"mtime"):
            entry.mtime, entry.mtime_ns = timestamp(values[b"mtime"], "mtime")
        entry.xattrs = pax.xattrs_of(merged)
        if entry.kind is Kind.FILE:
            self._read_map(header, entry, records, values)
        return entry

    # --- Sparse files

    def _read_map(
        self, header: Header, entry: Entry, records: pax.Records, values: dict[bytes, bytes]
    ) -> None:
        pieces: sparse.Map | None
        if header.type == b"S":
            pieces, size = self._old_map(header)
        elif values.get(b"GNU.sparse.major") == b"1":
            pieces = self._map_in_data(entry)
            size = _size(values, b"GNU.sparse.realsize")
        else:
            pieces = sparse.pax_map(records)
            if pieces is None:
                return
            size = _size(values, b"GNU.sparse.size", b"GNU.sparse.realsize")
        if not 0 <= size <= MAX_SIZE:
            raise FormatError(f"impossible size {size}")
        entry.name = _text(values, b"GNU.sparse.name") or entry.name
        entry.sparse = sparse.check_map(pieces, size, entry.stored)
        entry.size = size

    def _old_map(self, header: Header) -> tuple[sparse.Map, int]:
        pieces, more, size = sparse.old_map(header.block)
        blocks = 0
        while more:
            blocks += 1
            if blocks * BLOCK > MAX_SPECIAL:
                raise FormatError("a sparse map of more than 1 MiB")
            block = bytes(self._window.exactly(BLOCK, "a sparse map"))
            further, more = sparse.old_extension(block)
            pieces += further
        return pieces, size

    def _map_in_data(self, entry: Entry) -> sparse.Map:
        parser = sparse.MapInData()
        used = 0
        while not parser.done:
            used += BLOCK
            if used > MAX_SPECIAL or used > entry.stored:
                raise FormatError("a sparse map of more than 1 MiB, or without an end")
            parser.feed(bytes(self._window.exactly(BLOCK, "a sparse map")))
        self._set_stored(entry, entry.stored - used)
        return parser.map


class _placed:
    """Adds the archive's name and the offset to errors of the pure parts."""

    __slots__ = ("_name", "_offset")

    def __init__(self, name: str, offset: int) -> None:
        self._name, self._offset = name, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FormatError) and error.offset is None:
            raise FormatError(
                f"{self._name}: entry at byte {self._offset}: {error.message}",
                offset=self._offset,
            ) from None


def _text(values: dict[bytes, bytes], key: bytes) -> bytes | None:
    """A name; None where it is missing or empty."""
    value = values.get(key)
    if value and b"\0" in value:
        raise FormatError(f"{key.decode()} holds a NUL byte")
    return value or None


def _size(values: dict[bytes, bytes], *keys: bytes) -> int:
    for key in keys:
        if values.get(key):
            return decimal(values[key], key.decode())
    raise FormatError("a sparse file without its size")
