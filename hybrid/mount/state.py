"""What is mounted, on disk: one private directory per mount, named by its id.

    STATE/<id>/state.json   the MountRecord, replaced atomically, written by ``hybrid mount`` only
    STATE/<id>/fuse/        the FUSE mount point; ``disk`` in it is the merged image (mode fuse)
    STATE/<id>/control      the server's control socket
    STATE/<id>/log          the server's log (and ``log.1``)
    STATE/<id>/flushing     of a writable mount that ends, see ``last_flush``
    STATE/<id>/failure      the same

STATE is $HYBRID_STATE_DIR if set, /run/hybrid for root, $XDG_RUNTIME_DIR/hybrid for other users,
and /tmp/hybrid-UID where that is unset. It must belong to the user, with mode 0700.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybrid.errors import BusyError, HybridError, PermissionNeededError, StorageFullError
from hybrid.fuse import DISK_NAME
from hybrid.mount.processes import ProcessIdentity, wait_until

_FILES = ("state.json", "state.json.new", "control", "log", "log.1", "flushing", "failure")
_ID_DIGITS = 8
_CLAIM_SECONDS = 30.0


@dataclass(frozen=True)
class MountRecord:
    """One mount (or, without ``mountpoint``, one exposed file). Paths are absolute strings."""

    directory: Path = field(metadata={"stored": False})
    id: str
    image: str = ""
    digest: str = ""
    mode: str = ""
    mode_reason: str = ""
    pid: int = 0
    pid_start_time: int = 0
    """Clock ticks since boot, see ProcessIdentity."""
    mountpoint: str = ""
    fstype: str = ""
    options: str = ""
    loop: str = ""
    """The loop device, "" if there is none."""
    device: str = ""
    """The SCSI disk in mode tcmu, once it is there; "" in mode fuse."""
    source: str = ""
    """What was given to mount(2): the SCSI disk, the loop device or the file itself."""
    size: int = 0
    """Bytes of the exposed disk."""
    identity: str = ""
    """Of the disk's content: whoever takes over as server must have the same."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How to open the image again, see ``hybrid.mount.origin``."""
    writable: bool = False
    upper: str = ""
    """The directory or file where the changes of a writable mount are kept, "" if there is none."""
    ready: bool = False
    created: str = ""
    """UTC, ISO 8601."""

    @property
    def fuse_directory(self) -> Path:
        return self.directory / "fuse"

    @property
    def disk(self) -> Path:
        return self.fuse_directory / DISK_NAME

    @property
    def exposed(self) -> Path:
        """Where a program finds the disk."""
        return Path(self.device) if self.device else self.disk

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def control(self) -> Path:
        return self.directory / "control"

    @property
    def flushing(self) -> Path:
        return self.directory / "flushing"

    @property
    def failure(self) -> Path:
        return self.directory / "failure"

    @property
    def server(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, self.pid_start_time)

    def has_ended(self) -> bool:
        """Whether server and record are gone."""
        return not self.server.is_alive() and not self.directory.exists()

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STORED}

    def save(self) -> None:
        """Write the record; readers see the old one or the new one, whole."""
        new = self.directory / "state.json.new"
        with _storage_errors(new):
            new.touch(mode=0o600)
            new.write_text(json.dumps(self.to_json(), indent=2) + "\n")
            new.replace(self.directory / "state.json")


class Recorder:
    """The record of a mount that is being made: every change is on disk before the next step."""

    def __init__(self, record: MountRecord) -> None:
        self.record = record

    def note(self, **changes: Any) -> MountRecord:
        self.record = dataclasses.replace(self.record, **changes)
        self.record.save()
        return self.record


_STORED = tuple(
    item.name for item in dataclasses.fields(MountRecord) if item.metadata.get("stored", True)
)


def state_root() -> Path:
    """The directory of all mounts of this user. It need not exist yet."""
    override = os.environ.get("HYBRID_STATE_DIR")
    if override:
        return Path(override).absolute()
    if os.geteuid() == 0:
        return Path("/run/hybrid")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "hybrid" if runtime else Path(f"/tmp/hybrid-{os.geteuid()}")


def create_record(
    image: str, mode: str, mode_reason: str, origin: dict[str, Any], *, upper: str | None = None
) -> MountRecord:
    """Make the directory of a new mount, with a first record in it.

    ``upper`` is None for a read-only one.
    """
    root = state_root()
    with _storage_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(root)
    mount_id = secrets.token_hex(_ID_DIGITS // 2)
    # Filled under another name and renamed, so that `list` never sees half a mount.
    draft = root / f".{mount_id}"
    record = MountRecord(
        directory=draft,
        id=mount_id,
        image=image,
        mode=mode,
        mode_reason=mode_reason,
        origin=origin,
        writable=upper is not None,
        upper=upper or "",
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    try:
        with _storage_errors(draft):
            draft.mkdir(mode=0o700)
            record.fuse_directory.mkdir(mode=0o700)
            record.save()
            draft.rename(root / mount_id)
    except HybridError:
        remove_directory(draft)
        raise
    return dataclasses.replace(record, directory=root / mount_id)


def _check_private(root: Path) -> None:
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode):
        problem = "is no directory"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to uid {status.st_uid}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        problem = f"has mode {stat.S_IMODE(status.st_mode):04o}"
    else:
        return
    raise PermissionNeededError(
        f"the state directory {root} {problem}, but must be a directory of yours with mode 0700",
        hint="correct or remove it, or name another one in HYBRID_STATE_DIR",
    )


@contextlib.contextmanager
def exclusive_records() -> Iterator[None]:
    """While this is held, no other process that asks for it saves a record. Only for a moment."""
    descriptor = os.open(state_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claim(record: MountRecord) -> Iterator[MountRecord | None]:
    """Be the only command that changes this mount. Yields the record as it is then, None: gone.

    Raises BusyError if another command does not let go of it in time.
    """
    try:
        descriptor = os.open(record.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        if not wait_until(lambda: _try_lock(descriptor), _CLAIM_SECONDS):
            raise BusyError(f"another command is at work on mount {record.id}", hint="wait for it")
        yield read_record(record.directory)
    finally:
        os.close(descriptor)


def is_claimed(record: MountRecord) -> bool:
    """Whether a command is at work on this mount. False also if its record is gone."""
    try:
        descriptor = os.open(record.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_records() -> list[MountRecord]:
    """All mounts of this user, oldest first. A damaged record has only its id and directory."""
    root = state_root()
    try:
        _check_private(root)
        names = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    records = [read_record(root / name) for name in names if not name.startswith(".")]
    return sorted((found for found in records if found), key=lambda found: found.created)


def read_record(directory: Path) -> MountRecord | None:
    """The record in a mount's directory, None if it is gone. A damaged one has only its id."""
    try:
        fields = json.loads((directory / "state.json").read_text())
        # One that an older hybrid wrote lacks fields.
        known = {name: fields[name] for name in _STORED if type(fields.get(name)) is _TYPES[name]}
    except (OSError, ValueError, AttributeError):
        # Gone since the directory was listed, or really damaged.
        return MountRecord(directory, directory.name) if directory.is_dir() else None
    return MountRecord(directory, **{**known, "id": directory.name})


_TYPES = {name: type(getattr(MountRecord(Path(), ""), name)) for name in _STORED}


def remove_directory(directory: Path) -> None:
    """Remove what hybrid put into a mount's directory, and nothing else. Gone already is fine.

    The FUSE mount must be gone before: its mount point is removed as an empty directory.
    """
    for name in _FILES:
        (directory / name).unlink(missing_ok=True)
    for path in (directory / "fuse", directory):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionNeededError(f"cannot write {path}: permission denied") from error
    except OSError as error:
        raise StorageFullError(f"cannot write {path}: {error.strerror}") from error
