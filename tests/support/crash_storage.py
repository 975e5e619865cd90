"""A Storage that records what is done to its files, and the disks that a crash can leave of that.

As dm-log-writes does for a block device: ``RecordingStorage`` works on real files and keeps a log
of every change and every synchronisation. ``Replay`` makes, for a prefix of the log, the directory
as it would be found

    KILLED      after the death of the process: all that was done is there
    DROPPED     after a power cut that lost everything that was not synchronised
    METADATA    the same, but punched holes, sizes and names got to the disk before it, which is
                what shows a hole that was punched too early
    SCATTERED   after a power cut that lost some of it, in an order that nobody chose (seeded)

What a file system may do is taken from fsync(2), and from the journals of ext4 and xfs: changes of
names reach the disk in their order; a synchronised file need not have a name yet.
"""

from __future__ import annotations

import enum
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.core.device import Buffer
from hybrid.core.storage import Storage, StoredFile

_SECTOR = 512


class Fate(enum.Enum):
    """What became of that which was not synchronised."""

    KILLED = "killed"
    DROPPED = "dropped"
    METADATA = "metadata"
    SCATTERED = "scattered"


@dataclass(frozen=True)
class Op:
    """One step. ``what``: create, write, punch, truncate, sync, replace, remove, sync_directory."""

    what: str
    file: int = 0
    """Number of the file, by when it was first seen."""
    offset: int = 0
    """Of a sync: how many steps were done when it began."""
    length: int = 0
    data: bytes = b""
    name: str = ""
    target: str = ""


@dataclass
class Log:
    """All steps so far. ``begin`` is the directory as it was before the first."""

    directory: Path
    begin: dict[str, bytes] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    """When each step was done, in nanoseconds of the monotonic clock, which processes share."""

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.times.append(time.monotonic_ns())


class RecordingFile(StoredFile):
    def __init__(self, path: Path, descriptor: int, log: Log, number: int) -> None:
        super().__init__(path, descriptor)
        self._log = log
        self._number = number

    def write(self, offset: int, data: Buffer) -> None:
        super().write(offset, data)
        self._log.add(Op("write", self._number, offset, len(data), bytes(data)))

    def sync(self) -> None:
        # As of its begin: what another thread writes meanwhile may not be covered.
        covered = len(self._log.ops)
        super().sync()
        self._log.add(Op("sync", self._number, covered))

    def punch(self, offset: int, length: int) -> None:
        super().punch(offset, length)
        self._log.add(Op("punch", self._number, offset, length))

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._log.add(Op("truncate", self._number, size))


class RecordingStorage(Storage):
    """All files must lie in ``directory`` itself."""

    def __init__(self, directory: Path) -> None:
        self.log = Log(directory)
        self._numbers: dict[int, int] = {}
        """By inode, which is used again once a file is gone."""
        self._seen = 0
        for path in sorted(directory.iterdir()):
            self.log.begin[path.name] = path.read_bytes()
            self._number(path)

    def create(self, path: Path, *, like: StoredFile | None = None) -> StoredFile:
        file = super().create(path, like=like)
        self._numbers.pop(path.stat().st_ino, None)
        self.log.add(Op("create", self._number(path), name=self._name(path)))
        return self._recording(file)

    def open(self, path: Path, *, writable: bool = True) -> StoredFile:
        return self._recording(super().open(path, writable=writable))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.log.add(Op("replace", name=self._name(source), target=self._name(target)))

    def remove(self, path: Path) -> None:
        existed = path.exists()
        super().remove(path)
        if existed:
            self.log.add(Op("remove", name=self._name(path)))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if path == self.log.directory:
            self.log.add(Op("sync_directory"))

    def _recording(self, file: StoredFile) -> RecordingFile:
        descriptor, file._fd = file._fd, -1
        return RecordingFile(file.path, descriptor, self.log, self._number(file.path))

    def _number(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self._numbers:
            self._numbers[inode] = self._seen
            self._seen += 1
        return self._numbers[inode]

    def _name(self, path: Path) -> str:
        assert path.parent == self.log.directory, path
        return path.name


class Replay:
    """The directories that crashes leave after a prefix of a log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def write(self, target: Path, count: int, fate: Fate, seed: int = 0) -> None:
        """Make ``target`` as it is found after a crash behind the first ``count`` steps."""
        target.mkdir()
        for name, content in self.found(count, fate, seed).items():
            (target / name).write_bytes(content)

    def found(self, count: int, fate: Fate, seed: int = 0) -> dict[str, bytes]:
        """File contents by name."""
        dice = random.Random(f"{seed} {count}")
        ops = self._log.ops[:count]
        names = self._names(ops, fate, dice)
        files = self._files(ops, fate, dice)
        return {name: bytes(files[number]) for name, number in names.items()}

    def _names(self, ops: list[Op], fate: Fate, dice: random.Random) -> dict[str, int]:
        changes = [op for op in ops if op.what in ("create", "replace", "remove")]
        kept = len(changes)
        if fate in (Fate.DROPPED, Fate.SCATTERED):
            synced = max((i for i, op in enumerate(ops) if op.what == "sync_directory"), default=-1)
            durable = sum(op in changes for op in ops[: synced + 1])
            kept = durable if fate is Fate.DROPPED else dice.randint(durable, len(changes))
        names = {name: number for number, name in enumerate(self._log.begin)}
        for op in changes[:kept]:
            if op.what == "create":
                names[op.name] = op.file
            elif op.what == "replace":
                names[op.target] = names.pop(op.name)
            else:
                names.pop(op.name, None)
        return names

    def _files(self, ops: list[Op], fate: Fate, dice: random.Random) -> dict[int, bytearray]:
        files = {n: bytearray(content) for n, content in enumerate(self._log.begin.values())}
        synced: dict[int, int] = {}
        for op in ops:
            if op.what == "sync":
                synced[op.file] = max(synced.get(op.file, 0), op.offset)
        for position, op in enumerate(ops):
            if op.what in ("write", "punch", "truncate"):
                durable = position < synced.get(op.file, 0)
                content = files.setdefault(op.file, bytearray())
                _apply(content, op, None if durable else fate, dice)
            elif op.what == "create":
                files[op.file] = bytearray()
        return files


def _apply(content: bytearray, op: Op, fate: Fate | None, dice: random.Random) -> None:
    """``fate`` is None for what is durable."""
    if op.what == "write":
        if fate is Fate.SCATTERED:
            _write_scattered(content, op, dice)
        elif fate in (None, Fate.KILLED):
            _put(content, op.offset, op.data)
        elif fate is Fate.METADATA and len(content) < op.offset + op.length:
            # The size got there, the data did not.
            content.extend(bytes(op.offset + op.length - len(content)))
        return
    if fate is Fate.DROPPED or (fate is Fate.SCATTERED and dice.random() < 0.5):
        return
    if op.what == "punch":
        end = min(op.offset + op.length, len(content))
        content[op.offset : end] = bytes(max(0, end - op.offset))
    elif len(content) > op.offset:
        del content[op.offset :]
    else:
        content.extend(bytes(op.offset - len(content)))


def _write_scattered(content: bytearray, op: Op, dice: random.Random) -> None:
    """Some of the sectors; a disk writes each whole."""
    position = op.offset
    while position < op.offset + op.length:
        end = min((position // _SECTOR + 1) * _SECTOR, op.offset + op.length)
        if dice.random() < 0.5:
            _put(content, position, op.data[position - op.offset : end - op.offset])
        position = end


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data
