"""The blocks of a layer: only what changed, always the same, and stacked again."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import DIR, archive, member
from support.ext4_disks import MIB, Disk, check, debugfs, disk

from hybrid.build.ext4 import changes as changes_module
from hybrid.build.ext4.changes import Changes, Extent
from hybrid.build.ext4.layer import Ext4Layer
from hybrid.build.ext4.runs import BLOCK, Run, common, divided, whole_blocks
from hybrid.build.ext4.stack import LayerStack
from hybrid.build.tar.reader import TarReader
from hybrid.errors import FormatError, HybridError, StorageFullError, UnsupportedError, UsageError

FILES = archive(*(member(b"d/%d" % i, random.Random(i).randbytes(5000)) for i in range(300)))
SECOND = archive(member(b"d/.wh.7"), member(b"e/f", b"x", xattrs={b"user.x": b"y" * 300}))


class Raw:
    """A Base in memory."""

    def __init__(self, data: bytes | bytearray, extents: Sequence[Run] | None = None) -> None:
        self.data = data
        self.size = len(data)
        self._extents = [(0, self.size)] if extents is None else extents

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def extents(self) -> Sequence[Run]:
        return self._extents


def fingerprint(changes: Changes) -> str:
    total = hashlib.sha256()
    for extent in changes.extents:
        total.update(repr(extent).encode())
        if not extent.zero:
            total.update(changes.read(extent.offset, extent.length))
    return total.hexdigest()


# --- The base


def test_the_base_is_small_whatever_its_size(tmp_path: Path) -> None:
    with disk(64 << 30) as made:
        (base,) = made.layers
        assert base.data_bytes < 6 * MIB
        made.dump(tmp_path / "disk")
    with disk(1 << 30) as made:
        assert made.layers[0].data_bytes < MIB


@pytest.mark.parametrize("size", [8 * MIB, 100 * MIB + 4096, 128 * MIB + 8192, (3 << 30) + 4096])
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    with disk(size) as made:
        made.apply(archive(member(b"x", b"content")))
        made.dump(tmp_path / "disk")


@pytest.mark.parametrize("size", [0, -4096, 4096, 64 * MIB + 1, 17 << 40])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(UsageError, match="is not possible"):
        Ext4Layer.make(size)


def test_the_base_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Written down when it was made first. A change breaks the reuse of all converted layers."""
    with disk(1 << 30) as made:
        found = fingerprint(made.layers[0])
        features = debugfs(made.dump(tmp_path / "disk"), "features")
    assert features.split(":")[1].split() == [
        "ext_attr", "dir_index", "sparse_super2", "filetype", "extent", "64bit", "flex_bg",
        "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize",
    ]  # fmt: skip
    assert found == "3ba96113d5faf63d298c8030aad50dab39c808353ca19fdab85e532fce948eac"


# --- Determinism


def test_the_same_archives_give_the_same_blocks() -> None:
    script = """
import sys, time, os
sys.path[:0] = {path!r}
from support.ext4_disks import disk
from test_ext4_changes import FILES, SECOND, fingerprint
with disk() as made:
    made.apply(FILES, SECOND)
    print(*map(fingerprint, made.layers))
"""
    here = Path(__file__).parent
    path = [str(here.parent), str(here), str(here.parents[1])]
    odd = {"SOURCE_DATE_EPOCH": "77", "E2FSPROGS_FAKE_TIME": "88", "TZ": "Asia/Tokyo"}
    answers = {
        subprocess.run(
            [sys.executable, "-c", script.format(path=path)],
            env=os.environ | odd | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    with disk() as made:
        made.apply(FILES, SECOND)
        answers.add(" ".join(map(fingerprint, made.layers)) + "\n")
    assert len(answers) == 1


def test_how_the_stream_is_cut_does_not_matter() -> None:
    found = set()
    for step in (100, 5000, 1 << 20):
        with disk() as made, Ext4Layer.open(made.stack) as layer:
            stream = io.BytesIO(FILES)
            layer.apply(TarReader(lambda n, s=stream, k=step: s.read(min(n, k)), "x"))  # type: ignore[misc]
            with layer.finish() as result:
                found.add(fingerprint(result))
    assert len(found) == 1


# --- Only what changed


def test_an_empty_layer_changes_nothing() -> None:
    with disk() as made:
        made.apply(archive(), FILES, archive(), FILES)
        assert made.layers[1].extents == made.layers[3].extents == []
        # The same files anew take the places of the old ones, with the same content.
        assert made.layers[4].extents == []
        assert made.layers[2].data_bytes > 300 * 5000


def test_a_small_change_is_a_small_layer() -> None:
    with disk(1 << 30) as made:
        made.apply(FILES, archive(member(b"d/new", b"x")))
        assert made.layers[-1].data_bytes <= 8 * BLOCK


def test_freed_blocks_become_zeros(tmp_path: Path) -> None:
    with disk() as made:
        made.apply(FILES, archive(member(b".wh.d")))
        zeros = [extent for extent in made.layers[-1].extents if extent.zero]
        assert sum(extent.length for extent in zeros) >= 600 * BLOCK
        made.dump(tmp_path / "disk")
        data = (tmp_path / "disk").read_bytes()
        for extent in zeros:
            assert not any(data[extent.offset : extent.offset + extent.length])
        assert sum(length for _, length in made.stack.extents()) < 400_000


def test_extents_are_ordered_joined_and_true() -> None:
    with disk() as made:
        made.apply(FILES, archive(member(b"d/.wh..wh..opq"), member(b"d/5", b"five")))
        before = LayerStack(made.stack.size)
        for layer in made.layers:
            end = -1
            previous = None
            for extent in layer.extents:
                assert extent.length > 0
                assert extent.offset % BLOCK == extent.length % BLOCK == 0
                assert extent.offset > end or (extent.offset == end and extent.zero != previous)
                end, previous = extent.offset + extent.length, extent.zero
                if not extent.zero:
                    new = layer.read(extent.offset, extent.length)
                    old = before.read(extent.offset, extent.length)
                    for at in range(0, extent.length, BLOCK):
                        assert new[at : at + BLOCK] != old[at : at + BLOCK]
            before.push(layer)


# --- Runs and stacks


RUNS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=8).map(
    lambda gaps: [
        (sum(a + b for a, b in gaps[:i]) + gaps[i][0], gaps[i][1]) for i in range(len(gaps))
    ]
)


def numbers(runs: Sequence[Run]) -> set[int]:
    return {n for offset, length in runs for n in range(offset, offset + length)}


@given(RUNS, RUNS)
def test_runs(left: list[Run], right: list[Run]) -> None:
    assert numbers(list(common(left, right))) == numbers(left) & numbers(right)
    cut = list(divided(left, right))
    assert [n for o, length, _ in cut for n in range(o, o + length)] == sorted(numbers(left))
    inside = [(o, length) for o, length, i in cut if i]
    assert numbers(inside) == numbers(left) & numbers(right)


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 9000)), max_size=6))
def test_whole_blocks(runs: list[Run]) -> None:
    size = 20 * BLOCK
    found = whole_blocks(sorted(runs), size)
    touched = {n // BLOCK for n in numbers(runs)}
    assert {n // BLOCK for n in numbers(found)} == touched
    assert all(o % BLOCK == length % BLOCK == 0 for o, length in found)
    assert all(sum(a) < b[0] for a, b in pairwise(found))


LAYER = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=6)


@given(st.lists(LAYER, max_size=5), RUNS)
def test_stacks_show_the_topmost(
    layers: list[list[tuple[int, int, bool]]], below: list[Run]
) -> None:
    size = 64 * BLOCK
    model = bytearray(size)
    extents = [(o * BLOCK, length * BLOCK) for o, length in below if o + length <= 64]
    for offset, length in extents:
        model[offset : offset + length] = b"\xee" * length
    stack = LayerStack(size, Raw(bytes(model), extents))
    with ExitStack() as files:
        for number, layer in enumerate(layers):
            stack.push(files.enter_context(model_layer(model, number, layer)))
        assert stack.read(0, size) == model
        for offset, length in ((5, 100), (BLOCK - 1, 2), (3 * BLOCK + 7, 9 * BLOCK), (size, 0)):
            assert stack.read(offset, length) == model[offset : offset + length]
    covered = bytearray(size)
    for offset, length in stack.extents():
        assert not any(covered[offset : offset + length])
        covered[offset : offset + length] = b"\1" * length
    assert all(covered[i] or not model[i] for i in range(0, size, 512))


def model_layer(model: bytearray, number: int, layer: list[tuple[int, int, bool]]) -> Changes:
    """A layer of (gap, length, zero) in blocks, which is written to the model as well."""
    scratch = changes_module.new_scratch(None)
    at, ranges = 0, []
    for gap, length, zero in layer:
        at += gap
        if at + length > len(model) // BLOCK:
            break
        data = bytes([0 if zero else number + 1]) * (length * BLOCK)
        model[at * BLOCK : (at + length) * BLOCK] = data
        os.pwrite(scratch.fileno(), data, at * BLOCK)
        ranges.append(Extent(at * BLOCK, length * BLOCK, zero))
        at += length
    return Changes(scratch, len(model), ranges)


# --- Disks of others, damage, misuse


@pytest.mark.parametrize(
    "options", ["^metadata_csum,^orphan_file", "^metadata_csum,^64bit,uninit_bg"]
)
def test_file_systems_of_mke2fs(tmp_path: Path, options: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"")
    os.truncate(path, 64 * MIB)
    if "orphan" in options:
        options = "^metadata_csum"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", options, "-b", "4096", "-I", "256", path],
                   check=True, capture_output=True)  # fmt: skip
    base = Raw(path.read_bytes())
    made = Disk.__new__(Disk)
    made.stack, made.layers = LayerStack(base.size, base), []
    made.apply(FILES, archive(member(b"d/.wh.5"), member(b"e/", kind=DIR), member(b"e/x", b"x")))
    made.dump(tmp_path / "result")
    made.close()


def test_what_is_no_file_system_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the file system below the layer"):
        Ext4Layer.open(Raw(bytes(MIB)))
    for options in (["-O", "metadata_csum"], ["-b", "1024"], ["-I", "128"], ["-O", "^extent"]):
        path = tmp_path / "disk"
        path.write_bytes(bytes(64 * MIB))
        command = [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^64bit",
            *options,
            path,
        ]
        subprocess.run(command, check=True, capture_output=True)
        with pytest.raises(UnsupportedError, match="the file system below the layer"):
            Ext4Layer.open(Raw(path.read_bytes()))


def sample() -> bytearray:
    """A disk with a bit of everything."""
    with disk(32 * MIB) as made:
        made.apply(FILES, archive(member(b"x", b"x", xattrs={b"user.x": b"y" * 900}),
                                  member(b"d/" + b"n" * 200)))  # fmt: skip
        return bytearray(made.stack.read(0, made.stack.size))


def test_damage_below_is_told_or_harmless() -> None:
    """No crash, no endless loop, whatever the metadata hold."""
    whole = sample()
    choose = random.Random(5)
    meta = [at for at in range(0, len(whole), BLOCK) if any(whole[at : at + BLOCK])][:80]
    second = archive(*(member(b"d/%d" % i, b"y") for i in range(0, 300, 5)),
                     member(b"x", xattrs={b"user.x": b"z"}), member(b"d/.wh..wh..opq"))  # fmt: skip
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(choose.choice([1, 3, 30])):
            damaged[choose.choice(meta) + choose.randrange(BLOCK)] = choose.randrange(256)
        try:
            with Ext4Layer.open(Raw(damaged)) as layer:
                layer.apply(TarReader(io.BytesIO(second).read, "x"))
                layer.finish().close()
            outcomes.add("fine")
        except HybridError as error:
            outcomes.add(type(error).__name__)
    assert {"fine", "FormatError"} <= outcomes


def test_errors_of_the_base_come_through() -> None:
    class Broken(Raw):
        def read(self, offset: int, length: int) -> bytes:
            raise FormatError("block 5 of the layer below is damaged")

    with pytest.raises(FormatError, match="block 5 of the layer below"):
        Ext4Layer.open(Broken(bytes(8 * MIB)))

    class Short(Raw):
        def read(self, offset: int, length: int) -> bytes:
            return b""

    with pytest.raises(ValueError, match="a read of 4096 bytes gave 0"):
        Ext4Layer.open(Short(bytes(8 * MIB)))


def test_no_space_for_the_scratch_file() -> None:
    """A limit on the size of files stands for a full disk: both end in the same place."""
    script = f"""
import resource, signal, sys, io
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
from support.archives import archive, member
from support.ext4_disks import Disk
from hybrid.errors import StorageFullError
made = Disk()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MIB}, {4 * MIB}))
try:
    made.apply(archive(member(b"big", b"x" * {20 * MIB})))
except StorageFullError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("layer.tar: big: writing to the scratch file: File too large")
    assert "TMPDIR" in done.stdout


def test_use_after_the_end() -> None:
    with disk() as made:
        layer = Ext4Layer.open(made.stack)
        layer.finish().close()
        for action in (layer.finish, lambda: layer.apply(TarReader(io.BytesIO().read, "x"))):
            with pytest.raises(ValueError, match="the layer is closed"):
                action()
        layer.close()
        layer.close()
        broken = Ext4Layer.open(made.stack)
        with pytest.raises(FormatError):
            broken.apply(TarReader(io.BytesIO(b"x" * 512).read, "x"))
        broken.close()


def test_scratch_files_leave_no_name(tmp_path: Path) -> None:
    with Ext4Layer.make(64 * MIB, str(tmp_path)) as layer:
        assert [path.name for path in tmp_path.iterdir()] == ["home"]
        layer.finish().close()
    with pytest.raises(FileNotFoundError):
        Ext4Layer.make(64 * MIB, str(tmp_path / "missing"))


def test_layers_in_threads() -> None:
    """Each layer is one thread's; several may work at once."""
    found: list[str] = []

    def work() -> None:
        with disk() as made:
            made.apply(FILES)
            found.append(fingerprint(made.layers[-1]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_checks_of_the_tests_themselves(tmp_path: Path) -> None:
    """e2fsck finds a wrong count: what it accepts elsewhere is sound."""
    whole = sample()
    whole[BLOCK + 12] ^= 1  # free blocks of the first group
    (tmp_path / "disk").write_bytes(whole)
    with pytest.raises(AssertionError):
        check(tmp_path / "disk")
    assert issubclass(StorageFullError, HybridError)
