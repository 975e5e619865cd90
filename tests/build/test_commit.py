"""Changes over an image become a layer: directories of hybrid, and an ext4 in them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from support import ext4_images
from support.builders import SECTOR, ModelLayer, Write, model_merge
from support.stacks import PLAIN, unwrapped
from support.uppers import change, write_raw

from hybrid.build.base import Surroundings, look_around
from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import ChangeSet, directory_changes
from hybrid.build.commit import commit_layer
from hybrid.build.layer_file import Watcher, WrittenLayer
from hybrid.config import load_global_config
from hybrid.core.checkpoints import locked_checkpoint
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.opening import open_layer
from hybrid.core.output_file import output_file
from hybrid.core.source import FileSource
from hybrid.core.upper_directory import WritableDisk
from hybrid.errors import BusyError, FormatError, NotFoundError

SIZE = 4 << 20
PARENT = "AAAAAAAA-1111-4111-8111-111111111111"
LOWER = ModelLayer((Write(0, b"l" * SECTOR * 64), Write(1000, b"m" * SECTOR * 8)), SIZE)


def image_of(directory: Path, *layers: bytes) -> str:
    """A config of these layers, bottom first."""
    directory.mkdir(exist_ok=True)
    names = []
    for number, layer in enumerate(layers):
        path = directory / f"layer{number}"
        path.write_bytes(layer)
        names.append(f'{{"file": "{path}"}}')
    config = directory / "image.json"
    config.write_text(f'{{"lowers": [{", ".join(names)}]}}')
    return str(config)


@pytest.fixture
def image(tmp_path: Path) -> str:
    return image_of(tmp_path / "image", LOWER.build(uuid=PARENT))


def committed(
    upper: Path,
    image: str,
    output: Path,
    *,
    wrapping: Wrapping = PLAIN,
    message: str = "",
    reachable: bool = True,
) -> tuple[WrittenLayer, Surroundings]:
    async def open_base() -> LayeredDevice:
        if not reachable:
            raise NotFoundError("gone")
        return await open_image(ImageRequest(image, load_global_config(None)))

    async def run() -> tuple[WrittenLayer, Surroundings]:
        found = await look_around(changes, open_base)
        with output_file(output) as file:
            layer = await commit_layer(changes, found, wrapping, message, file, Watcher())
            return layer, found

    with directory_changes(upper) as changes:
        return trio.run(run)


def merged(image: str, layer: Path) -> bytes:
    """The disk of an image with the layer on top, as hybrid reads it."""

    async def run() -> bytes:
        async with AsyncExitStack() as stack:
            disk = await open_image(ImageRequest(image, load_global_config(None)))
            stack.push_async_callback(disk.aclose)
            source = FileSource(layer)
            stack.push_async_callback(source.aclose)
            top = await open_layer(source)
            size = top.record.virtual_size
            disk.push(top)
            disk.size = size
            return bytes(await disk.pread(0, size))

    return trio.run(run)


async def some_writes(disk: WritableDisk) -> None:
    await disk.pwrite(5 * SECTOR, b"u" * SECTOR * 20)
    await disk.pwrite(5 * SECTOR, b"v" * SECTOR * 3)
    await disk.discard(1000 * SECTOR, 8 * SECTOR)
    await disk.discard(2000 * SECTOR, 80 * SECTOR)
    await disk.pwrite(4096 * SECTOR, bytes(SECTOR * 100))


WRITES = (
    Write(5, b"u" * SECTOR * 20),
    Write(5, b"v" * SECTOR * 3),
    Write(1000, 8),
    Write(2000, 80),
)


def test_a_layer_of_the_changes(image: str, tmp_path: Path) -> None:
    upper, output = tmp_path / "upper", tmp_path / "layer"
    change(image, upper, some_writes)
    layer, found = committed(upper, image, output, message="why not")
    parsed = unwrapped(output.read_bytes(), PLAIN)
    zeroed = [(e.offset, e.length) for e in parsed.entries if e.zeroed]
    assert zeroed == [(1000, 8)], "what hides nothing is left out"
    assert merged(image, output) == model_merge([LOWER, ModelLayer(WRITES, SIZE)])
    assert layer.digest == "sha256:" + hashlib.sha256(output.read_bytes()).hexdigest()
    assert layer.parent_uuid == found.parent_uuid == PARENT
    assert parsed.header["parent_uuid"] == PARENT.encode() + b"\0"
    assert parsed.header["user_tag"].rstrip(b"\0") == b"why not"
    assert layer.virtual_size == SIZE


def test_the_same_changes_give_the_same_digest(image: str, tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        # Made anew: uuids of pairs are random, and nothing of that may show.
        upper = tmp_path / f"upper{number}"
        change(image, upper, some_writes)
        for wrapping in (Wrapping(), Wrapping(threads=3)):
            output = tmp_path / "layer"
            digests.add(committed(upper, image, output, wrapping=wrapping)[0].digest)
    assert len(digests) == 1


def test_snapshots_are_part_of_the_changes(image: str, tmp_path: Path) -> None:
    async def with_snapshots(disk: WritableDisk) -> None:
        await disk.pwrite(5 * SECTOR, b"u" * SECTOR * 20)
        await disk.snapshot()
        await disk.pwrite(5 * SECTOR, b"v" * SECTOR * 3)
        await disk.discard(1000 * SECTOR, 8 * SECTOR)
        await disk.snapshot()
        await disk.discard(2000 * SECTOR, 80 * SECTOR)
        await disk.pwrite(4096 * SECTOR, bytes(SECTOR * 100))

    outputs = []
    for name, work in (("one", some_writes), ("several", with_snapshots)):
        change(image, tmp_path / name, work)
        outputs.append(tmp_path / f"{name}.layer")
        committed(tmp_path / name, image, outputs[-1])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_checkpoint_of_a_disk_in_use(image: str, tmp_path: Path) -> None:
    upper, output = tmp_path / "upper", tmp_path / "layer"

    async def while_in_use(disk: WritableDisk) -> None:
        await some_writes(disk)
        with locked_checkpoint(upper) as lock:
            point = await disk.checkpoint(lock)
            await disk.pwrite(0, b"x" * SECTOR * 4000)
            await disk.flush()
            await disk.snapshot()
            changes = ChangeSet.checkpoint("live", point, disk.directory.manifest)
            with output_file(output) as file:
                await commit_layer(changes, Surroundings(), PLAIN, "", file, Watcher())

    change(image, upper, while_in_use)
    assert merged(image, output) == model_merge([LOWER, ModelLayer(WRITES, SIZE)])


def test_a_grown_disk(image: str, tmp_path: Path) -> None:
    async def at_the_end(disk: WritableDisk) -> None:
        await disk.pwrite(2 * SIZE - SECTOR, b"e" * SECTOR)

    change(image, tmp_path / "upper", at_the_end, size=2 * SIZE)
    layer, _ = committed(tmp_path / "upper", image, tmp_path / "layer")
    assert layer.virtual_size == 2 * SIZE
    disk = merged(image, tmp_path / "layer")
    assert disk[:SIZE] == model_merge([LOWER])
    assert disk[SIZE:] == bytes(SIZE - SECTOR) + b"e" * SECTOR


def test_in_use(image: str, tmp_path: Path) -> None:
    upper = tmp_path / "upper"

    async def meanwhile(disk: WritableDisk) -> None:
        with pytest.raises(BusyError, match="in use by process"), directory_changes(upper):
            pass

    change(image, upper, meanwhile)
    with directory_changes(upper), pytest.raises(BusyError):
        change(image, upper, meanwhile)


def test_an_image_that_is_gone(
    image: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(image, tmp_path / "upper", some_writes)
    layer, found = committed(tmp_path / "upper", image, tmp_path / "layer", reachable=False)
    assert "the image below cannot be read (gone)" in caplog.text
    assert found.below is None
    assert layer.zero_bytes == (8 + 80 + 100) * SECTOR, "all that might hide something"
    assert merged(image, tmp_path / "layer") == model_merge([LOWER, ModelLayer(WRITES, SIZE)])


def test_an_image_that_became_another(image: str, tmp_path: Path) -> None:
    change(image, tmp_path / "upper", some_writes)
    other = image_of(tmp_path / "image", LOWER.build())
    with pytest.raises(FormatError, match="another disk"):
        committed(tmp_path / "upper", other, tmp_path / "layer")


# --- with an ext4 in it


def ext4_image(directory: Path, options: str = "") -> tuple[str, Path]:
    """An image of one layer, and its disk as a raw file."""
    raw = ext4_images.make(directory / "raw", options)
    ext4_images.fill(raw, "mkdir etc", "mkdir data")
    content = raw.read_bytes()
    writes = []
    for offset in range(0, len(content), 4096):
        block = content[offset : offset + 4096]
        if any(block):
            writes.append(Write(offset // SECTOR, block))
    return image_of(directory / "image", ModelLayer(tuple(writes), len(content)).build()), raw


def deletes_big_files(raw: Path) -> None:
    source = raw.with_name("content")
    source.write_bytes(random.Random(1).randbytes(12 << 20))
    small = raw.with_name("small")
    small.write_bytes(random.Random(2).randbytes(5000))
    ext4_images.fill(raw, f"write {source} data/big", f"write {small} data/small")


def removes_them(raw: Path) -> None:
    ext4_images.fill(raw, "rm data/big", f"write {raw.with_name('small')} etc/other")


def apply(image: str, upper: Path, raw: Path, *steps: Callable[[Path], None]) -> None:
    """Each step changes the raw file; what differs is then written to the disk."""

    async def work(disk: WritableDisk) -> None:
        for step in steps:
            step(raw)
            await write_raw(disk, raw)
            await disk.flush()

    change(image, upper, work)


@pytest.mark.parametrize("options", ["", "-b 1024", "-b 2048 -O ^64bit", "-O ^has_journal"])
def test_deleted_files_are_left_out(options: str, tmp_path: Path) -> None:
    image, raw = ext4_image(tmp_path, options)
    upper, output = tmp_path / "upper", tmp_path / "layer"
    apply(image, upper, raw, deletes_big_files, removes_them)
    layer, found = committed(upper, image, output)
    assert found.free is not None
    assert layer.data_bytes < 2 << 20
    disk = tmp_path / "disk"
    disk.write_bytes(merged(image, output))
    ext4_images.check(disk)
    assert ext4_images.tree(disk) == ext4_images.tree(raw)
    for name in ("/data/small", "/etc/other"):
        ext4_images.run("debugfs", "-R", f"dump {name} {tmp_path / 'dumped'}", disk)
        assert (tmp_path / "dumped").read_bytes() == (tmp_path / "small").read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("ssv state 0", "not unmounted cleanly"),
        ("ssv feature_incompat 0x2c6", "journal was not replayed"),
    ],
)
def test_a_file_system_that_was_not_unmounted_keeps_all(
    damage: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, raw = ext4_image(tmp_path)
    upper, output = tmp_path / "upper", tmp_path / "layer"
    steps = (deletes_big_files, removes_them, lambda path: ext4_images.fill(path, damage))
    apply(image, upper, raw, *steps)
    layer, _ = committed(upper, image, output)
    assert said in caplog.text
    assert layer.data_bytes > 12 << 20
    assert merged(image, output) == raw.read_bytes()


def test_what_was_free_before_does_not_come_back(tmp_path: Path) -> None:
    """A deleted file of the image: its blocks are free now, and hidden only if they have data."""
    image, raw = ext4_image(tmp_path)
    deletes_big_files(raw)
    content = raw.read_bytes()
    blocks = [
        Write(offset // SECTOR, content[offset : offset + 4096])
        for offset in range(0, len(content), 4096)
        if any(content[offset : offset + 4096])
    ]
    image = image_of(tmp_path / "image", ModelLayer(tuple(blocks), len(content)).build())
    upper, output = tmp_path / "upper", tmp_path / "layer"

    async def work(disk: WritableDisk) -> None:
        removes_them(raw)
        await write_raw(disk, raw)

    change(image, upper, work)
    layer, _ = committed(upper, image, output)
    assert layer.data_bytes < 1 << 20
    disk = tmp_path / "disk"
    disk.write_bytes(merged(image, output))
    ext4_images.check(disk)
    assert ext4_images.tree(disk) == ext4_images.tree(raw)
