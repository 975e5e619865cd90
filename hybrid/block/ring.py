"""The command ring of a TCMU device: taking commands, placing data, answering (spec: tcmu 3).

Pure: works on a memoryview of the whole map and does no I/O; ``hybrid.block.uio`` has the device.
Sources: linux/target_core_user.h, Documentation/target/tcmu-design.rst. The map (bytes):

    0         cmdr_off            cmdr_off + cmdr_size              end of the map
    | mailbox | command ring      | data area                      |

    mailbox                     CMD entry, as a request       the same, as a response
     0  2 version (2)            0  4 length | op (3 bits)      4  2 cmd_id
     2  2 flags                  4  2 cmd_id                    7  1 uflags
     4  4 cmdr_off               6  2 kflags, uflags            8  1 SCSI status
     8  4 cmdr_size              8  4 iov_cnt                  12  4 read_len
    12  4 cmd_head  (kernel)    24  8 cdb_off                  16 96 sense data
    64  4 cmd_tail  (ours)      48 16 base, length (each iovec)

Numbers have the machine's byte order. cmd_head and cmd_tail count from the start of the ring, all
other offsets from the start of the map. Lengths of entries are multiples of 8, and no entry wraps
around: a PAD entry fills the end of the ring. What is not within these borders is never touched.

Completion is **out of order**: a read that waits for the network must not hold up those that do
not. The kernel takes responses from the tail on and looks each up by its cmd_id, so a response is
written over the *oldest* entry, whichever command that was. What the entry said is thus copied on
taking it: the CDB (some 10 bytes) and the borders of the iovecs. Payload is never copied here.

The price is paid after a crash: if B was answered before A, A's entry is gone (it carried B's
response) and B's still stands there. A server that began at cmd_tail would run B again, on data
blocks that may be another command's by now, and A would never be answered. So before a new server
starts, the kernel must have been told ``reset_ring=1``, which gives every open command back to
the initiator to be sent again. For the same reason a server ends when the ring is reset under it
(RingError): where its commands pointed to is not theirs any more.

Memory ordering. A cast("I") view loads and stores cmd_head and cmd_tail with one access each. What
comes between them is ordered by a lock that is let go and taken again: everything before a
release comes before the acquire that follows it, and that before all later accesses.
 * After loading cmd_head: the kernel stores an entry, then cmd_head (smp_store_release). x86 keeps
   our loads in order by itself; aarch64 may load the entry early, and see what stood there one
   round before.
 * Before storing cmd_tail: data and response have to be visible first. Mostly the kernel looks at
   cmd_tail within our own write(2) to the uio device, on the same thread, where program order is
   enough on any machine: no other barrier is needed before that write. But ``block_dev=1`` makes
   it look from another CPU at any moment; there x86 keeps our stores in order, aarch64 does not.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from hybrid.core.device import Buffer
from hybrid.errors import FormatError

MAX_SENSE = 96
"""Bytes of sense data that a response holds."""

_MAILBOX = struct.Struct("=HHII")  # version, flags, cmdr_off, cmdr_size
_MAILBOX_SIZE = 68  # bytes, up to the end of cmd_tail
_HEAD = 12 // 4  # cmd_head and cmd_tail as indexes of a view of 32-bit words
_TAIL = 64 // 4
_VERSION = 2
_OUT_OF_ORDER = 1  # TCMU_MAILBOX_FLAG_CAP_OOOC

_OP_MASK = 7
_OP_CMD = 1
_OP_TMR = 2
_HEADER_SIZE = 8
_UFLAGS_AT = 7
_UFLAG_UNKNOWN_OP = 1
_UFLAG_READ_LEN = 2

# cmd_id, iov_cnt, cdb_off, and the first iovec. There is always room for one.
_REQUEST = struct.Struct("=4xH2xI12xQ16xQQ")
_IOVS_AT = 48
_IOV_SIZE = 16
_RESPONSE_AT = 4
_RESPONSE = struct.Struct("=HBBB3xI")  # cmd_id, kflags, uflags, status, read_len
_SENSE_AT = 16
_ENTRY_SIZE = _SENSE_AT + MAX_SENSE  # the smallest CMD entry: it must hold a response

_VARIABLE_LENGTH = 0x7F
_MAX_CDB = 260
# Bytes of a CDB by its group code, the high 3 bits of the opcode (SPC-4 4.2.5.1); the reserved
# and the vendor's groups as the kernel has them.
_CDB_LENGTHS = bytes(length for length in (6, 10, 10, 12, 16, 12, 10, 10) for _ in range(32))

_HINT = "hybrid resume resets the ring and starts a new server"


class RingError(FormatError):
    """The ring breaks the ABI so that going on is impossible, or it was reset under us."""


class Command(NamedTuple):
    """One command of the initiator. Its iovecs may be touched until it is completed, not later."""

    cmd_id: int
    cdb: bytes
    """b"" if malformed."""
    iovs: tuple[tuple[int, int], ...]
    """The data buffer: (offset in the map, length), bytes; all within the data area."""
    malformed: str = ""
    """Why CDB or iovecs could not be used. Must be answered nevertheless, with sense data."""


class Ring:
    """Our side of the ring. One task at a time may call it; between its calls there is no state
    that an await could break. Numbers are bytes.

    take() -> put() or views() -> complete(), in any order of commands; then tell the kernel
    through the uio device, once for any number of completions.
    """

    def __init__(self, view: memoryview) -> None:
        """``view`` is the whole map, writable. Begins with the oldest command that is not answered.

        Raises RingError for a mailbox that hybrid cannot work with.
        """
        self._view = memoryview(view)
        self._offset, self._size = _check_mailbox(view)
        self._words = self._view[: len(view) & ~3].cast("I")
        self._data_start = self._offset + self._size
        self._tail = self._position = self._words[_TAIL]
        self._check_pointer("cmd_tail", self._tail)
        self._ids: set[int] = set()
        self._entries: deque[int] = deque()  # where CMD entries begin in the ring, oldest first
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release
        self._acquire()

    def close(self) -> None:
        """Let go of the map, so that it can be closed."""
        self._words.release()
        self._view.release()

    @property
    def in_flight(self) -> int:
        """Commands taken and not completed."""
        return len(self._ids)

    @property
    def has_new(self) -> bool:
        """Whether take() would find something. Costs one load."""
        return self._words[_HEAD] != self._position

    def take(self, limit: int) -> list[Command]:
        """The next commands, oldest first, at most ``limit``. Raises RingError.

        If it raises, commands found before the broken entry are not lost: they are in flight, but
        nobody has them. The ring cannot be used any more.
        """
        head = self._words[_HEAD]
        if head == self._position:
            return []
        self._release()
        self._acquire()
        self._check_head(head)
        commands: list[Command] = []
        while self._position != head and len(commands) < limit:
            command = self._step(head)
            if command is not None:
                commands.append(command)
        return commands

    def put(self, command: Command, parts: Sequence[Buffer]) -> int:
        """Copy ``parts``, joined, into the data buffer of a command; return how many bytes.

        What does not fit is left out. Raises RingError if the ring was reset.
        """
        if self._words[_TAIL] != self._tail:
            raise self._reset()
        iovs = command.iovs
        if len(iovs) == 1 and len(parts) == 1:
            base, room = iovs[0]
            length = len(parts[0])
            if length <= room:
                self._view[base : base + length] = parts[0]
                return length
        return self._scatter(iovs, parts)

    def views(self, command: Command, length: int) -> list[memoryview]:
        """The first ``length`` bytes of the data buffer (less if it is shorter), without a copy.

        They are valid until the command is completed. Release them: the map cannot be closed
        while they live.
        """
        views = []
        for base, room in command.iovs:
            if length <= 0:
                break
            views.append(self._view[base : base + min(room, length)])
            length -= room
        return views

    def complete(
        self, cmd_id: int, status: int = 0, sense: bytes = b"", *, read_length: int = 0
    ) -> None:
        """Answer a command that was taken: SCSI status, and sense data (at most 96 bytes).

        ``read_length``: bytes put into the data buffer, if the reply is shorter than it. Without
        it (0) the kernel hands the whole buffer to the initiator, with what earlier commands left.
        Raises ValueError for a command that is not in flight, or sense data that does not fit,
        and RingError if the ring was reset.
        """
        words = self._words
        if words[_TAIL] != self._tail:
            raise self._reset()
        if cmd_id not in self._ids:
            raise ValueError(f"command {cmd_id} is not in flight")
        start = self._offset + self._entries[0]
        if status:
            self._view[start + _SENSE_AT : start + _ENTRY_SIZE] = _padded(sense)
        uflags = _UFLAG_READ_LEN if read_length else 0
        _RESPONSE.pack_into(
            self._view, start + _RESPONSE_AT, cmd_id, 0, uflags, status, read_length
        )
        self._ids.remove(cmd_id)
        self._entries.popleft()
        self._release()
        self._acquire()
        # The next CMD entry, past any PAD and TMR.
        self._tail = words[_TAIL] = self._entries[0] if self._entries else self._position

    def _step(self, head: int) -> Command | None:
        """Go past one entry. None: it is no command."""
        position = self._position
        start = self._offset + position
        len_op = self._words[start >> 2]
        op = len_op & _OP_MASK
        length = len_op - op
        room = (head if head > position else self._size) - position
        if not (_ENTRY_SIZE if op == _OP_CMD else _HEADER_SIZE) <= length <= room:
            raise self._error(f"entry of {length} bytes, with room for {room}", start)
        command = self._command(start, length, position) if op == _OP_CMD else None
        if op > _OP_TMR:
            # The kernel then fails the command itself.
            self._view[start + _UFLAGS_AT] |= _UFLAG_UNKNOWN_OP
        self._position = position + length if position + length < self._size else 0
        return command

    def _command(self, start: int, length: int, position: int) -> Command:
        cmd_id, count, cdb_offset, base, room = _REQUEST.unpack_from(self._view, start)
        if cmd_id in self._ids:
            raise self._error(f"command {cmd_id} comes twice", start)
        self._ids.add(cmd_id)
        self._entries.append(position)
        if count == 1:
            iovs: tuple[tuple[int, int], ...] = ((base, room),)
        elif _IOVS_AT + count * _IOV_SIZE > length:
            return Command(cmd_id, b"", (), f"{count} iovecs in an entry of {length} bytes")
        else:
            array = self._view[start + _IOVS_AT : start + _IOVS_AT + count * _IOV_SIZE]
            iovs = tuple(struct.iter_unpack("=QQ", array))
        for base, room in iovs:
            if base < self._data_start or base + room > len(self._view):
                return Command(cmd_id, b"", (), f"iovec of {room} bytes at {base:#x}")
        cdb = self._cdb(cdb_offset)
        if not cdb:
            return Command(cmd_id, b"", (), f"CDB at {cdb_offset:#x}")
        return Command(cmd_id, cdb, iovs)

    def _cdb(self, offset: int) -> bytes:
        """The CDB at ``offset``; b"" unless it lies in the command ring."""
        if not self._offset <= offset < self._data_start:
            return b""
        opcode = self._view[offset]
        end = offset + _CDB_LENGTHS[opcode]
        if opcode == _VARIABLE_LENGTH and end <= self._data_start:
            end = offset + min(_HEADER_SIZE + self._view[offset + 7], _MAX_CDB)
        return self._view[offset:end].tobytes() if end <= self._data_start else b""

    def _scatter(self, iovs: Sequence[tuple[int, int]], parts: Sequence[Buffer]) -> int:
        copied = 0
        buffers = iter(iovs)
        base = room = 0
        for part in parts:
            rest = memoryview(part)
            while rest:
                while not room:
                    base, room = next(buffers, (-1, 0))
                    if base < 0:
                        return copied
                length = min(room, len(rest))
                self._view[base : base + length] = rest[:length]
                rest = rest[length:]
                base += length
                room -= length
                copied += length
        return copied

    def _check_head(self, head: int) -> None:
        if self._words[_TAIL] != self._tail:
            raise self._reset()
        self._check_pointer("cmd_head", head)
        if (self._position - self._tail) % self._size > (head - self._tail) % self._size:
            raise self._reset()

    def _check_pointer(self, name: str, value: int) -> None:
        if value >= self._size or value % _HEADER_SIZE:
            raise self._error(f"{name} is {value} in a ring of {self._size} bytes", 0)

    def _reset(self) -> RingError:
        return self._error(f"it was reset with {len(self._ids)} commands open", 0)

    def _error(self, what: str, offset: int) -> RingError:
        return RingError(f"TCMU ring: {what}, at byte {offset}", hint=_HINT, offset=offset)


def _padded(sense: bytes) -> bytes:
    if len(sense) > MAX_SENSE:
        raise ValueError(f"{len(sense)} bytes of sense data; {MAX_SENSE} fit")
    return sense.ljust(MAX_SENSE, b"\0")


def _check_mailbox(view: memoryview) -> tuple[int, int]:
    """Offset and size of the command ring."""
    if len(view) < _MAILBOX_SIZE:
        raise RingError(f"TCMU ring: a map of {len(view)} bytes holds no mailbox", offset=0)
    version, flags, offset, size = _MAILBOX.unpack_from(view)
    if version != _VERSION:
        raise RingError(
            f"TCMU ring: mailbox version {version}, not {_VERSION}",
            hint="use another kernel, or --mode fuse",
            offset=0,
        )
    if not flags & _OUT_OF_ORDER:
        raise RingError(
            "TCMU ring: the kernel takes no out-of-order completions",
            hint="use a newer kernel, or --mode fuse",
            offset=2,
        )
    fits = offset >= _MAILBOX_SIZE and size > 0 and offset + size <= len(view)
    if not fits or offset % _HEADER_SIZE or size % _HEADER_SIZE:
        raise RingError(
            f"TCMU ring: {size} bytes at {offset} of a map of {len(view)} bytes", offset=4
        )
    return offset, size
