"""What servers that died, and commands that were killed, have left behind.

Found by records, /proc and /sys alone: nothing that is mounted is touched, as it may not answer.
What can be removed without taking anything from anybody has a ``remove``; ``hybrid gc`` calls it.
All the rest is for somebody to decide, with ``hybrid resume`` or ``hybrid umount``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.block.names import Target
from hybrid.mount.detach import force_end
from hybrid.mount.leftover import Leftover, elsewhere, has_listener, is_young, removal_errors
from hybrid.mount.listing import MountStatus, list_mounts
from hybrid.mount.loop_leftovers import judge_loops, list_loops
from hybrid.mount.mountinfo import MountEntry, read_mountinfo
from hybrid.mount.open_files import OpenFiles, look_at_processes, sees_all
from hybrid.mount.paths import is_mounted
from hybrid.mount.state import MountRecord, claim, remove_directory, state_root
from hybrid.mount.target_leftovers import find_hanging, find_targets, look_at_targets
from hybrid.mount.upper_leftovers import find_uppers

_FUSE_SOURCE = re.compile(r"hybrid:[0-9a-f]{8}")


@dataclass(frozen=True)
class Scene:
    """What was seen at one moment."""

    mounts: list[MountStatus]
    entries: list[MountEntry]
    loops: dict[Path, str]
    """Loop device -> path of the file under it."""
    targets: list[Target]
    """The TCMU disks in configfs."""
    files: OpenFiles

    @classmethod
    def look(cls) -> Scene:
        """Raises PermissionNeededError (state directory) and TimeoutExpiredError."""
        return cls(
            list_mounts(),
            read_mountinfo(),
            list_loops(),
            look_at_targets(),
            look_at_processes(),
        )


def find_leftovers() -> list[Leftover]:
    """Everything that is left in this user's directories and in this machine's kernel.

    What no record tells of is judged only where all processes can be seen (``sees_all``). Raises
    PermissionNeededError for a state directory that is not private, and TimeoutExpiredError.
    """
    scene = Scene.look()
    root = state_root()
    found = [
        *(left for mount in scene.mounts for left in judge_mount(mount, scene)),
        *_find_drafts(root),
        *_find_logs(root),
        *find_uppers(scene.mounts),
        *find_hanging(),
    ]
    return found + _find_unrecorded(scene, root) if sees_all() else found


def _find_unrecorded(scene: Scene, root: Path) -> list[Leftover]:
    known = [mount.record for mount in scene.mounts]
    directories = frozenset(str(record.directory) for record in known)
    return [
        *judge_loops(scene.loops, directories, scene.entries, scene.files),
        *judge_fuse_mounts(scene, root),
        *find_targets(scene.targets, frozenset(record.id for record in known), scene.files),
    ]


def judge_mount(mount: MountStatus, scene: Scene) -> Iterator[Leftover]:
    """What is wrong with a mount that has a record; nothing if all is well."""
    record = mount.record
    take_away = f"`hybrid umount {record.id}` takes it away"
    if mount.state == "stopped":
        text = f"server {record.pid} of {record.image} is stopped: reads wait"
        yield Leftover("mount", record.id, text, f"kill -CONT {record.pid}, or {take_away}")
    elif mount.state == "unmounted":
        text = f"{record.mountpoint} is not mounted any more, the disk of it is still used"
        yield Leftover("mount", record.id, text, f"it goes with its last user; {take_away}")
    elif mount.state == "failed":
        text = f"the last changes of {record.image} may be lost"
        yield Leftover("mount", record.id, text, f"`hybrid umount {record.id}` tells the reason")
    elif mount.state == "dead":
        yield from _judge_dead(record, scene, take_away)


def _judge_dead(record: MountRecord, scene: Scene, take_away: str) -> Iterator[Leftover]:
    if not record.ready and is_young(record.directory / "state.json"):
        return  # Its command is at work, to start the server or to undo what was begun.
    where = f" of {record.image}" if record.image else ""
    writer = scene.files.writers.get(str(record.directory))
    if writer is not None or has_listener(record.control):
        who = (
            f"process {writer}" if writer is not None else "a process that cannot be seen from here"
        )
        text = f"{who} serves this mount{where}, though the record does not say so"
        yield Leftover("mount", record.id, text, take_away)
    elif record.ready and any(target.id == record.id for target in scene.targets):
        text = f"the server{where} is dead: reads of {record.exposed} wait"
        remedy = f"`hybrid resume {record.id}` goes on, {take_away}"
        yield Leftover("mount", record.id, text, remedy)
    elif is_mounted(record, scene.entries):
        text = f"the server{where} is dead: reads below {record.mountpoint} fail"
        yield Leftover("mount", record.id, text, take_away)
    elif loops := [loop for loop, file in scene.loops.items() if file == str(record.disk)]:
        text = f"the server{where} is dead, but {loops[0]} is still used"
        yield Leftover("mount", record.id, text, f"unmount {loops[0]}, then {take_away}")
    else:
        text = f"the server{where} is dead, and nothing of it is mounted"
        yield _removable_mount(record, text)


def _removable_mount(record: MountRecord, text: str) -> Leftover:
    def remove() -> None:
        with claim(record) as current, removal_errors(record.directory):
            # Somebody may have taken it away, or begun something with it.
            if current and not current.server.is_alive() and not has_listener(current.control):
                force_end(current)

    return Leftover("state", record.id, text, "`hybrid gc` removes it", remove)


def _find_drafts(root: Path) -> Iterator[Leftover]:
    """Directories of mounts whose command was killed before it had made its record."""
    for directory in _children(root, ".????????"):
        if is_young(directory):
            continue

        def remove(directory: Path = directory) -> None:
            with removal_errors(directory):
                remove_directory(directory)

        text = f"{directory} is the beginning of a mount that was never made"
        yield Leftover("state", str(directory), text, "`hybrid gc` removes it", remove)


def _find_logs(root: Path) -> Iterator[Leftover]:
    for log in _children(root, "failed-????????.log"):

        def remove(log: Path = log) -> None:
            with removal_errors(log):
                log.unlink(missing_ok=True)

        text = f"{log} tells of a server that failed while it started"
        yield Leftover("log", str(log), text, "read it; `hybrid gc` removes it", remove)


def _children(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def judge_fuse_mounts(scene: Scene, root: Path) -> Iterator[Leftover]:
    """FUSE mounts of dead servers in other state directories, whose records are not ours to judge.

    One below our own is found by its record, which is there for as long as the directory is.
    """
    for entry in scene.entries:
        directory = Path(entry.mount_point).parent
        if (
            not _FUSE_SOURCE.fullmatch(entry.source)
            or directory.parent == root
            or str(directory) in scene.files.writers
        ):
            continue
        text = f"no server of hybrid serves the FUSE mount {entry.mount_point} any more"
        yield Leftover("fuse", entry.mount_point, text, elsewhere(directory))
