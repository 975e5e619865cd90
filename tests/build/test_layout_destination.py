"""Writing OCI layouts: whole or not at all, by several writers at once, and on a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from support import oci
from support.streams import Content

from hybrid.build.blob_file import PART_PREFIX, PART_SUFFIX, create_once
from hybrid.build.contract import add_blob, manifest_blob
from hybrid.build.layout_destination import LayoutDestination
from hybrid.core.byte_stream import memory_content
from hybrid.core.reference import LayoutReference, ManifestBlob
from hybrid.errors import (
    BusyError,
    FormatError,
    NotFoundError,
    PermissionNeededError,
    StorageFullError,
    UnsupportedError,
    UsageError,
)

DATA = Random(8).randbytes(3_000_000)
ROOT = os.geteuid() == 0


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def tags(directory: Path) -> dict[str, str]:
    index = json.loads((directory / "index.json").read_text())
    return {e["annotations"][oci.REF_NAME]: e["digest"] for e in index["manifests"]}


async def write_image(directory: Path, tag: str, data: bytes) -> ManifestBlob:
    """One layer, a config, a manifest, a tag."""
    destination = LayoutDestination(LayoutReference(directory, tag))
    try:
        await add_blob(destination, Content(data, known=False, repeatable=False).blob)
        await add_blob(destination, memory_content(oci.image_config([data])))
        document = oci.manifest_of([oci.descriptor(data, oci.OCI_LAYER)], oci.image_config([data]))
        manifest = manifest_blob(document, oci.OCI_MANIFEST)
        await destination.put_manifest(manifest)
        assert await destination.tag(manifest) == f"oci:{directory}:{tag}@{manifest.digest}"
        return manifest
    finally:
        await destination.aclose()


def test_a_new_layout(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    manifest = trio.run(write_image, directory, "v1", DATA)
    assert tags(directory) == {"v1": manifest.digest}
    assert files(directory) == sorted(
        ["oci-layout", "index.json"]
        + [
            f"blobs/sha256/{oci.digest_of(blob)[7:]}"
            for blob in (DATA, oci.image_config([DATA]), manifest.data)
        ]
    )
    checked = ["skopeo", "inspect", f"oci:{directory}:v1"]
    assert json.loads(subprocess.check_output(checked))["Digest"] == manifest.digest
    listed = subprocess.check_output(["umoci", "list", "--layout", str(directory)], text=True)
    assert listed.split() == ["v1"]


async def test_nothing_is_made_before_something_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "layout"
    destination = LayoutDestination(LayoutReference(directory, "v1"))
    assert not await destination.has_blob(oci.digest_of(DATA), len(DATA))
    await destination.aclose()
    assert not directory.exists()


@pytest.mark.parametrize("known", [True, False])
async def test_damaged_content_leaves_no_file(tmp_path: Path, known: bool) -> None:
    destination = LayoutDestination(LayoutReference(tmp_path / "layout", "v1"))
    wrong = oci.digest_of(b"other")
    content = Content(DATA, known=known, digest=wrong)
    with pytest.raises(FormatError, match="digest"):
        await destination.put_blob(content.blob)
    failing = Content(DATA, known=known, fails_at=10, error=NotFoundError("gone"))
    with pytest.raises(NotFoundError, match="gone"):
        await destination.put_blob(failing.blob)
    await destination.aclose()
    assert files(tmp_path / "layout") == ["oci-layout"]
    assert content.all_closed
    assert failing.all_closed


async def test_what_is_there_is_not_written_again(layout: Path) -> None:
    await write_image(layout, "v1", DATA)
    destination = LayoutDestination(LayoutReference(layout, "v2"))
    content = Content(DATA)
    assert (await add_blob(destination, content.blob)).how == "present"
    assert not content.streams
    # Cut short, as by a full disk and another program: it is replaced.
    path = layout / "blobs" / "sha256" / content.digest[7:]
    path.write_bytes(DATA[:-1])
    assert (await add_blob(destination, content.blob)).how == "written"
    assert path.read_bytes() == DATA
    await destination.aclose()
    # Changed by somebody since: the next one that writes there sees it.
    path.write_bytes(b"!" + DATA[1:])
    destination = LayoutDestination(LayoutReference(layout, "v3"))
    assert (await add_blob(destination, content.blob)).how == "written"
    assert path.read_bytes() == DATA
    await destination.aclose()


async def test_a_digest_as_name(layout: Path) -> None:
    manifest = await write_image(layout, "v1", DATA)
    destination = LayoutDestination(LayoutReference(layout, manifest.digest))
    assert await destination.tag(manifest) == f"oci:{layout}@{manifest.digest}"
    await destination.aclose()
    other = LayoutDestination(LayoutReference(layout, oci.digest_of(b"other")))
    with pytest.raises(UsageError, match="cannot become"):
        other.accept(manifest)


@pytest.mark.parametrize("name", ["notes.txt", ".git"])
def test_a_directory_that_is_something_else(layout: Path, name: str) -> None:
    layout.mkdir()
    (layout / name).write_text("mine")
    with pytest.raises(UsageError, match="no OCI layout"):
        LayoutDestination(LayoutReference(layout, "v1"))
    with pytest.raises(UsageError, match="is no directory"):
        LayoutDestination(LayoutReference(Path("/dev/null"), "v1"))
    (layout / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match="leads nowhere"):
        LayoutDestination(LayoutReference(layout / "dangling", "v1"))


def test_a_layout_of_another_version(layout: Path) -> None:
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "7.0.0"}')
    with pytest.raises(UnsupportedError):
        LayoutDestination(LayoutReference(layout, "v1"))


def test_a_layout_that_was_never_finished(layout: Path) -> None:
    """Its maker died before there was an index."""
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifest = trio.run(write_image, layout, "v1", DATA)
    assert tags(layout) == {"v1": manifest.digest}


async def test_what_others_have_put_in_stays(layout: Path) -> None:
    builder = oci.LayoutBuilder(layout)
    theirs = builder.add_image([b"layer"], "theirs")
    old = builder.add_image([b"old"], "v1")
    mine = await write_image(layout, "v1", DATA)
    assert tags(layout) == {"theirs": theirs, "v1": mine.digest}
    assert builder.path(old).exists()  # blobs may be shared: nobody but the owner may clean up


async def test_a_damaged_index_is_left_alone(layout: Path) -> None:
    oci.LayoutBuilder(layout)
    (layout / "index.json").write_text("{")
    with pytest.raises(FormatError, match=r"index\.json"):
        await write_image(layout, "v1", DATA)
    assert (layout / "index.json").read_text() == "{"


# -- several writers -------------------------------------------------------------------------------

WRITER = """
import sys, trio
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from build.test_layout_destination import write_image
async def main():
    for number in range(5):
        await write_image(Path(sys.argv[2]), f"{sys.argv[3]}-{number}", sys.argv[3].encode() * 9)
trio.run(main)
"""


def writer(directory: Path, name: str) -> "subprocess.Popen[bytes]":
    tests = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", WRITER, str(tests), str(directory), name])


def test_writers_do_not_lose_each_others_tags(tmp_path: Path) -> None:
    directory = tmp_path / "layout"
    running = [writer(directory, name) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(tags(directory)) == [f"{name}-{n}" for name in "abc" for n in range(5)]
    assert not list(directory.rglob("*.part"))


async def test_tasks_do_not_lose_each_others_tags(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write_image, tmp_path / "layout", f"t{number}", DATA)
    assert sorted(tags(tmp_path / "layout")) == [f"t{number}" for number in range(8)]


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process has a lock on the file."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.communicate(b"\n")


def test_a_lock_that_is_never_given_back(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.build.layout_destination.LOCK_SECONDS", 0.1)
    trio.run(write_image, layout, "v1", DATA)
    before = (layout / "index.json").read_bytes()
    with locked(layout / "oci-layout"), pytest.raises(BusyError, match="another writer"):
        trio.run(write_image, layout, "v2", DATA)
    assert (layout / "index.json").read_bytes() == before


# -- crashes ---------------------------------------------------------------------------------------

CRASHER = """
import os, signal, sys, trio
tests, root = sys.argv[1:]
sys.path.insert(0, tests)
from pathlib import Path
import build.test_layout_destination as test

def crash(function):
    def wrapped(*args, **kwargs):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

def in_child(work):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)

def write_and_crash():
    for name in ("open", "write", "fsync", "link", "close", "mkdir", "unlink"):
        setattr(os, name, crash(getattr(os, name)))
    Path.replace = crash(Path.replace)
    trio.run(test.write_image, directory, "v1", test.DATA)

for number in range(1000):
    directory = Path(root) / str(number)
    if number % 2:
        assert in_child(lambda: trio.run(test.write_image, directory, "v1", test.OLD)) == 0
    count = number
    code = in_child(write_and_crash)
    print(code, flush=True)
    if code != -signal.SIGKILL:
        break
"""
OLD = b"the image before"


def test_killed_at_any_point(tmp_path: Path) -> None:
    """kill -9 before each system call that changes something: the tag is old or new, never half."""
    command = [sys.executable, "-c", CRASHER, str(Path(__file__).parents[1]), str(tmp_path)]
    output = subprocess.run(command, timeout=120, check=True, stdout=subprocess.PIPE).stdout
    codes = [int(code) for code in output.split()]
    assert len(codes) > 20
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    new = tags(tmp_path / str(len(codes) - 1))["v1"]
    old = trio.run(write_image, tmp_path / "old", "v1", OLD).digest
    for number in range(len(codes)):
        directory = tmp_path / str(number)
        blobs = directory / "blobs" / "sha256"
        if number % 2:
            assert tags(directory)["v1"] in (old, new)
        elif (directory / "index.json").exists():
            assert tags(directory) == {"v1": new}
        for path in blobs.glob("[0-9a-f]*"):
            assert oci.digest_of(path.read_bytes())[7:] == path.name
        # Another run ends it, and takes away what the first has left.
        again = trio.run(write_image, directory, "v1", DATA)
        assert tags(directory)["v1"] == again.digest == new
        assert not list(blobs.glob(f"{PART_PREFIX}*"))


def test_parts_in_use_are_left_alone(layout: Path) -> None:
    trio.run(write_image, layout, "v1", DATA)
    blobs = layout / "blobs" / "sha256"
    used = blobs / f"{PART_PREFIX}used{PART_SUFFIX}"
    dead = blobs / f"{PART_PREFIX}dead{PART_SUFFIX}"
    dead.write_text("dead")
    with locked(used):
        trio.run(write_image, layout, "v2", b"more")
        assert used.exists()
        assert not dead.exists()


async def test_a_file_system_without_unnamed_files(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *rest)

    monkeypatch.setattr("os.open", refuse)
    manifest = await write_image(layout, "v1", DATA)
    again = await write_image(layout, "v2", DATA)
    assert tags(layout) == {"v1": manifest.digest, "v2": again.digest}
    destination = LayoutDestination(LayoutReference(layout, "v1"))
    with pytest.raises(FormatError):
        await destination.put_blob(Content(b"x", digest=oci.digest_of(b"y")).blob)
    await destination.aclose()
    assert len(files(layout)) == 5
    assert not [name for name in files(layout) if name.endswith(".part")]


async def test_old_parts_of_an_index_are_removed(layout: Path) -> None:
    await write_image(layout, "v1", DATA)
    old, new, other = (layout / f".{name}.part" for name in ("0" * 16, "1" * 16, "mine"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1, 1))
    await write_image(layout, "v2", DATA)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


async def test_the_marker_of_the_layout_stays_the_same_file(layout: Path) -> None:
    """It carries the lock."""
    await write_image(layout, "v1", DATA)
    before = (layout / "oci-layout").stat().st_ino
    create_once(layout / "oci-layout", b"other")
    assert (layout / "oci-layout").stat().st_ino == before
    assert b"imageLayoutVersion" in (layout / "oci-layout").read_bytes()


# -- no room, no rights ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    if not ROOT:
        pytest.skip("mounting needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    subprocess.run(command, check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    destination = LayoutDestination(LayoutReference(small_disk / "layout", "v1"))
    first = await add_blob(destination, memory_content(bytes(300_000)))
    with pytest.raises(StorageFullError) as caught:
        await add_blob(destination, Content(DATA).blob)
    await destination.give_up(caught.value)
    await destination.aclose()
    assert first.how == "written"
    assert not (small_disk / "layout").exists()


async def test_a_full_disk_beside_an_older_image(small_disk: Path) -> None:
    old = await write_image(small_disk / "layout", "v1", b"old")
    before = files(small_disk)
    destination = LayoutDestination(LayoutReference(small_disk / "layout", "v1"))
    await add_blob(destination, memory_content(bytes(300_000)))
    with pytest.raises(StorageFullError) as caught:
        await add_blob(destination, Content(DATA).blob)
    await destination.give_up(caught.value)
    await destination.aclose()
    assert files(small_disk) == before
    assert tags(small_disk / "layout") == {"v1": old.digest}


async def test_a_full_disk_while_somebody_else_writes(small_disk: Path) -> None:
    """What one has found to be there must not be taken away by another."""
    one = LayoutDestination(LayoutReference(small_disk / "layout", "one"))
    blob = memory_content(bytes(300_000))
    await add_blob(one, blob)
    other = LayoutDestination(LayoutReference(small_disk / "layout", "other"))
    assert (await add_blob(other, blob)).how == "present"
    with pytest.raises(StorageFullError) as caught:
        await add_blob(one, Content(DATA).blob)
    await one.give_up(caught.value)
    assert await other.has_blob(blob.digest, blob.size)
    await one.aclose()
    await other.aclose()


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_no_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionNeededError):
            trio.run(write_image, tmp_path / "layout", "v1", DATA)
    finally:
        tmp_path.chmod(0o700)


async def test_a_place_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is no directory"):
        await write_image(tmp_path / "file" / "layout", "v1", DATA)
    assert (tmp_path / "file").read_text() == "mine"


# --- Blobs that are written in place


async def test_a_draft_becomes_a_blob(layout: Path) -> None:
    destination = LayoutDestination(LayoutReference(layout, "v1"))
    digest = memory_content(DATA).digest
    for how in ("written", "present"):
        draft = await destination.begin_blob()
        draft.file.write(DATA)
        draft.file.flush()
        put = await draft.finish(digest, len(DATA))
        draft.close()
        assert (put.digest, put.size, put.how) == (digest, len(DATA), how)
    assert (layout / "blobs" / "sha256" / digest[7:]).read_bytes() == DATA
    assert len(files(layout / "blobs")) == 1
    await destination.aclose()


async def test_a_draft_that_is_not_finished_leaves_nothing(layout: Path) -> None:
    destination = LayoutDestination(LayoutReference(layout, "v1"))
    draft = await destination.begin_blob()
    draft.file.write(DATA)
    draft.close()
    assert files(layout / "blobs") == []
    error = draft.error(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(error, StorageFullError)
    assert str(layout) in str(error)
    await destination.aclose()
