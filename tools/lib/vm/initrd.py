"""The guest's first files, packed as the kernel wants them.

kernel: Documentation/driver-api/early-userspace/buffer-format.rst (cpio, "newc").
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPTS = Path(__file__).parent
_BUSYBOX = Path("/bin/busybox")
_APPLETS = (
    *("cat", "cp", "env", "hostname", "insmod", "ip", "ln", "mkdir", "mkfifo", "mount"),
    *("poweroff", "setsid", "sh", "sleep", "switch_root", "sync"),
)
EARLY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
"""What the scripts need before the host's files are there."""
_DIRECTORIES = ("bin", "modules", "lower", "writes", "new", "proc", "sys", "dev")


@dataclass(frozen=True)
class Entry:
    """A file, directory or symbolic link (whose data is the target). ``mode`` is st_mode."""

    name: str
    mode: int
    data: bytes = b""


def first_files(modules: Sequence[Path], settings: bytes, command: bytes) -> list[Entry]:
    """All files of the guest's first root: busybox, modules in load order, scripts, plan."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES]
    entries.append(_file("bin/busybox", _BUSYBOX.read_bytes(), 0o755))
    entries += [Entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in _APPLETS]
    for number, path in enumerate(modules):
        entries.append(_file(f"modules/{number:02}-{path.name}", path.read_bytes()))
    entries.append(_file("init", (_SCRIPTS / "init.sh").read_bytes(), 0o755))
    entries.append(_file("start.sh", (_SCRIPTS / "start.sh").read_bytes()))
    entries.append(_file("settings.sh", settings))
    entries.append(_file("command.sh", command))
    return entries


def _file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | permissions, data)


def pack(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the "newc" format, everything owned by root."""
    parts = [
        part for number, entry in enumerate(entries, 1) for part in _packed_entry(number, entry)
    ]
    parts += _packed_entry(0, Entry("TRAILER!!!", 0))
    return b"".join(parts)


def _packed_entry(number: int, entry: Entry) -> list[bytes]:
    name = entry.name.encode() + b"\0"
    links = 1
    # inode, mode, uid, gid, links, mtime, size, device, device of a node, length of name, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return [header, name, _padding(len(header) + len(name)), entry.data, _padding(len(entry.data))]


def _padding(length: int) -> bytes:
    return bytes(-length % 4)
