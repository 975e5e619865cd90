"""What a file system needs before it is mounted to be written, and after: check, journal, size.

All of it is the work of the file systems' own programs, on the disk that the server answers for.
Never call it in the server.

Journal: images are made without one, since nobody writes to them. An upper is written to, and may
end in a crash, so ext4 gets one. 32 MiB at most: all of it ends up in the upper over time, and
transactions of 8 MiB are enough for a disk that is appended to (mke2fs would take up to 1 GiB).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
from pathlib import Path

from hybrid.errors import FormatError, StorageFullError, SystemSupportError, UnsupportedError
from hybrid.mount.channel import Ready
from hybrid.mount.kernel_support import Capability, Machine
from hybrid.mount.state import MountRecord

_LOOK_SECONDS = 1.0
_MIB = 1 << 20
_MOST_JOURNAL = 32
"""MiB."""
_LEAST_JOURNAL = 4
"""MiB: 1024 blocks of 4 KiB, the least that ext4 takes."""
_JOURNAL_SHARE = 32
"""A small disk gives at most this part of itself to the journal."""
_UNCORRECTED = 4
"""Exit code of e2fsck, from which on the file system has errors still (e2fsck(8))."""
_MOST_REASON = 200
_BANNER = re.compile(r"(e2fsck|resize2fs|tune2fs) \d+\.")
"""What these programs say on stderr first of all."""

_HARMLESS = re.compile(
    r"|Pass \d: .*|Problem in HTREE directory inode \d+: .*"
    r"|Invalid HTREE directory inode \d+ \(.*\)\.  Clear HTree index\? no"
    r"|(Free blocks|Free inodes|Directories) count wrong .*|Fix\? no"
    r"|.* WARNING: Filesystem still has errors .*|.*: \d+/\d+ files \(.*"
)
"""Lines that `e2fsck -fn` may print of damage to indexes and counts, which it makes anew."""

logger = logging.getLogger(__name__)


def prepare(record: MountRecord, ready: Ready, *, journal: bool, grows: bool) -> None:
    """Make the file system on the exposed disk fit to be written.

    Raises FormatError (damage that only a person can decide on), SystemSupportError (a program is
    missing, the server died), StorageFullError (no room for the journal), UnsupportedError (it
    does not grow).
    """
    if ready.wants_check:
        logger.info("checking the file system of %s: it was not unmounted", record.image)
        _check(record)
    if grows and ready.is_ext and not _grows_mounted(ready):
        _check(record, "-f")  # resize2fs insists on it
        _grow(record, ready, "e2fsprogs", "resize2fs", record.exposed)
    if ready.lacks_journal and journal:
        _add_journal(record, ready)


def grow_mounted(record: MountRecord, mountpoint: Path, ready: Ready) -> None:
    """Let the mounted file system fill its disk. Raises UnsupportedError if it does not."""
    if ready.fstype == "xfs":
        _grow(record, ready, "xfsprogs", "xfs_growfs", mountpoint)
    elif ready.fstype == "btrfs":
        command = ("btrfs", "filesystem", "resize", "max", mountpoint)
        _grow(record, ready, "btrfs-progs", *command)
    elif _grows_mounted(ready):
        _grow(record, ready, "e2fsprogs", "resize2fs", record.source)


def _grows_mounted(ready: Ready) -> bool:
    """Mounted is quicker for ext4, since it need not be checked, but takes CAP_SYS_RESOURCE."""
    return not ready.is_ext or Machine().has(Capability.SYS_RESOURCE)


def _check(record: MountRecord, *options: str) -> None:
    done = _run(record, "e2fsprogs", "e2fsck", "-p", *options, record.exposed)
    if done.returncode >= _UNCORRECTED and _is_harmless(record):
        done = _run(record, "e2fsprogs", "e2fsck", "-fy", record.exposed)
    if done.returncode >= _UNCORRECTED:
        where = f" --upper {record.upper}" if record.upper else ""
        raise FormatError(
            f"e2fsck finds damage in the file system of {record.image} that it does not repair "
            f"unasked: {_reason(done)}",
            hint=f"expose the disk, hybrid mount --no-mount --rw{where} {record.image}, "
            "and run e2fsck on it",
        )


def _is_harmless(record: MountRecord) -> bool:
    """Whether all damage is of a kind that repairing cannot make worse.

    Images that overlaybd's own tools have converted have an index of ``lost+found`` that e2fsck
    does not like, and counts of free blocks that were not kept up (spec: layer-apply 8, 12).
    """
    done = _run(record, "e2fsprogs", "e2fsck", "-fn", record.exposed)
    return all(_HARMLESS.fullmatch(line.strip()) for line in done.stdout.splitlines())


def _add_journal(record: MountRecord, ready: Ready) -> None:
    size = min(_MOST_JOURNAL, max(_LEAST_JOURNAL, ready.size // _MIB // _JOURNAL_SHARE))
    wanted = ("-O", "has_journal", "-J", f"size={size}")
    done = _run(record, "e2fsprogs", "tune2fs", *wanted, record.exposed)
    if done.returncode:
        raise StorageFullError(
            f"cannot make a journal of {size} MiB in the file system of {record.image}: "
            f"{_reason(done)}",
            hint="--no-journal does without",
        )


def _grow(record: MountRecord, ready: Ready, package: str, *command: str | Path) -> None:
    done = _run(record, package, *command)
    if done.returncode:
        raise UnsupportedError(
            f"the {ready.fstype} file system of {record.image} does not grow to {ready.size} "
            f"bytes: {_reason(done)}",
            hint="mount without --size",
        )


def _run(
    record: MountRecord, package: str, *command: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a program on the disk; given up if the server dies, since it would wait for that."""
    words = [str(word) for word in command]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        child = subprocess.Popen(
            words,
            env={**os.environ, "LC_ALL": "C", "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise SystemSupportError(
            f"{words[0]} is missing", hint=f"install the package {package}"
        ) from error
    try:
        while True:
            try:
                output, errors = child.communicate(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if record.server.is_alive():
                    continue
                raise SystemSupportError(
                    f"the server died while {words[0]} was at work on {record.image}",
                    hint="try again",
                ) from None
            logger.debug("%s: %s%s", " ".join(words), output, errors)
            return subprocess.CompletedProcess(words, child.returncode, output, errors)
    finally:
        if child.returncode is None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=_LOOK_SECONDS)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing that the program complained about, in one line."""
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    said = [line.strip() for line in lines if line.strip() and not _BANNER.match(line)]
    return said[-1][:_MOST_REASON] if said else f"exit code {done.returncode}"
