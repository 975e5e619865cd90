"""What the writers of ext4 and of erofs must treat alike, and what stops both."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.archives import DIR, archive, member
from support.ext4_disks import MIB, debugfs, disk

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.erofs_steps import ErofsSteps
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.ext4_steps import Ext4Steps
from hybrid.build.convert.feed import Feed
from hybrid.build.convert.options import SourceLayer
from hybrid.build.convert.pipe import StoppedError
from hybrid.build.convert.shares import Shares
from hybrid.build.ext4.native import ROOT
from hybrid.build.ext4.removal import Remover
from hybrid.errors import FormatError

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
VERSION = struct.pack("<I", 2)
ENTRIES = b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 32))


async def ext4_names(data: bytes, tmp_path: Path) -> set[bytes]:
    """The names of the extended attributes of ``x``, as debugfs shows them."""
    with disk() as made:
        made.apply(data)
        lines = debugfs(made.dump(tmp_path / "disk"), "ea_list x").splitlines()
        return {line.split()[0].encode() for line in lines if line.startswith("  ")}


async def erofs_names(data: bytes, tmp_path: Path) -> set[bytes]:
    steps = ErofsSteps(MIB, tmp_path, Cores(2), Shares())
    try:
        await steps.apply(expanded(data))
        tree = steps._tree
        return set(tree.nodes[tree.children(ROOT)[b"x"]].xattrs or {})
    finally:
        steps.close()


both = pytest.mark.parametrize("names_of", [ext4_names, erofs_names])
Names = Callable[[bytes, Path], Awaitable[set[bytes]]]


@both
@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        VERSION[:3],
        struct.pack("<I", 1) + ENTRIES,
        VERSION + ENTRIES[:-1],
        VERSION + ENTRIES + b"\0\0\0\0",
        VERSION + ENTRIES + struct.pack("<HHI", 64, 7, 0),
    ],
    ids=["empty", "nonsense", "short", "version", "cut", "half", "tag"],
)
async def test_what_is_no_acl_is_refused(
    tmp_path: Path, names_of: Names, name: bytes, value: bytes
) -> None:
    data = archive(member(b"x/", kind=DIR, xattrs={name: value}))
    with pytest.raises(FormatError, match=r"layer.*: x/: invalid value of .* system\.posix"):
        await names_of(data, tmp_path)


@both
async def test_what_is_an_acl_is_kept(tmp_path: Path, names_of: Names) -> None:
    acls = {ACCESS: VERSION + ENTRIES, DEFAULT: VERSION + ENTRIES}
    assert await names_of(archive(member(b"x/", kind=DIR, xattrs=acls)), tmp_path) == set(acls)
    # On a file Linux has no use for the second one, so nobody looks what it is.
    data = archive(member(b"x", xattrs={ACCESS: VERSION + ENTRIES, DEFAULT: b"nonsense"}))
    assert await names_of(data, tmp_path) == {ACCESS}


@both
async def test_an_acl_without_entries_is_none(tmp_path: Path, names_of: Names) -> None:
    data = archive(member(b"x/", kind=DIR, xattrs={ACCESS: VERSION, DEFAULT: VERSION}))
    assert await names_of(data, tmp_path) == set()


@both
async def test_names_that_linux_cannot_ask_for_are_dropped(tmp_path: Path, names_of: Names) -> None:
    longest = b"security." + b"n" * 246
    data = archive(member(b"x", xattrs={longest: b"1", longest + b"n": b"2", b"user.": b"3"}))
    assert await names_of(data, tmp_path) == {longest}


# --- What stops them

MANY = 300
FULL = archive(
    member(b"d/", kind=DIR),
    *(member(b"d/%03d" % number, b"x") for number in range(MANY)),
    member(b"e/", kind=DIR),
    *(member(b"e/%03d" % number, b"x") for number in range(MANY)),
)
REMOVALS = {
    "opaque": archive(member(b"d/.wh..wh..opq")),
    "whiteout": archive(member(b".wh.d")),
    "root": archive(member(b".wh..wh..opq")),
    "replaced": archive(member(b"d", b"now a file")),
}


def make_steps(fs: str, directory: Path) -> Ext4Steps | ErofsSteps:
    if fs == "ext4":
        return Ext4Steps(64 * MIB, None, directory, Cores(2), Shares())
    return ErofsSteps(64 * MIB, directory, Cores(2), Shares())


def expanded(data: bytes) -> Expanding:
    """A layer all of which has been expanded already."""
    cores = Cores(2)
    layer = SourceLayer("sha256:a", 1, f"sha256:{hashlib.sha256(data).hexdigest()}")
    expanding = Expanding(layer, "layer", Feed(cores, None), cores, Shares())
    expanding.pipe.put(data)
    expanding.pipe.end()
    return expanding


async def remove_and(
    stop: Callable[[], None],
    removed: list[bytes],
    fs: str,
    removal: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Apply what removes many files, and call ``stop`` (in the thread) when half of them are gone.

    The thread goes on as soon as it was told to stop. ``removed`` gets the names.
    """
    remove_file = Remover._remove_file
    told = threading.Event()

    def remove_and_stop(
        remover: Remover, directory: int, name: bytes, kind: int, keep: bool
    ) -> None:
        remove_file(remover, directory, name, kind, keep)
        removed.append(name)
        if len(removed) == MANY // 2:
            stop()
            assert told.wait(30)

    steps = make_steps(fs, directory)
    try:
        if isinstance(steps, Ext4Steps):
            await steps.make_base()
        await steps.apply(expanded(FULL))
        expanding = expanded(REMOVALS[removal])
        pipe_stop = expanding.pipe.stop

        def stop_and_tell() -> None:
            pipe_stop()
            told.set()

        monkeypatch.setattr(expanding.pipe, "stop", stop_and_tell)
        monkeypatch.setattr(Remover, "_remove_file", remove_and_stop)
        with trio.fail_after(60):
            await steps.apply(expanding)
    finally:
        steps.close()


@pytest.mark.parametrize("fs", ["ext4", "erofs"])
@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_removal_that_is_cancelled_ends_soon(
    tmp_path: Path, fs: str, removal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next name: what a cancelled conversion has made is of no use to anybody."""
    removed: list[bytes] = []
    scope = trio.CancelScope()
    stop = functools.partial(trio.from_thread.run_sync, scope.cancel)
    with scope, pytest.raises(StoppedError):
        await remove_and(stop, removed, fs, removal, tmp_path, monkeypatch)
    assert scope.cancel_called
    assert len(removed) == MANY // 2


@pytest.mark.parametrize("fs", ["ext4", "erofs"])
def test_ctrl_c_ends_a_removal(tmp_path: Path, fs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python hears it in the main thread, which waits for the one that removes."""
    removed: list[bytes] = []
    stop = functools.partial(os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trio.run(remove_and, stop, removed, fs, "opaque", tmp_path, monkeypatch)
    assert len(removed) == MANY // 2
