"""What fio reads. Each Device stands behind both modes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.data import DISK_SIZE, Data
from bench.fio import RANDOM_1
from bench.fronts import fuse_file, tcmu_disk
from bench.images import hybrid_state, start_image
from bench.modes.ramdisk import ramdisk
from bench.targets import Target
from hybrid.fuse.loop import attach_loop

NULL_DEVICE = f"null:{DISK_SIZE}"
_CHUNK = bytes(1 << 20)


@contextlib.contextmanager
def all_targets(data: Data) -> Iterator[list[Target]]:
    """All of them, ready to be read; all gone at the end."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        null = enter(tcmu_disk(NULL_DEVICE, DISK_SIZE))
        null_fuse, null_pid = enter(fuse_file(NULL_DEVICE))
        sleeps = enter(tcmu_disk(NULL_DEVICE, DISK_SIZE, sleeps=True))
        environment = enter(hybrid_state())
        image = start_image(data.config("lz4"), environment, "tcmu")
        image_fuse, image_pid = start_image(data.config("lz4"), environment, "fuse")
        yield [
            Target("a", "tcm_loop, kernel's ramdisk", enter(ramdisk(DISK_SIZE))),
            Target("b", "loop, file on tmpfs", enter(_loop(enter(_memory_file())))),
            Target("c", "TCMU, null Device", *null),
            Target("d", "FUSE + loop, null Device", enter(_loop(null_fuse)), null_pid),
            Target("e", "TCMU, 3 layers, lz4 4K", *image),
            Target("f", "FUSE + loop, 3 layers, lz4 4K", enter(_loop(image_fuse)), image_pid),
            Target("g", "as (c), only sleeps", *sleeps, only=RANDOM_1.key),
        ]


@contextlib.contextmanager
def _loop(file: Path) -> Iterator[Path]:
    loop = attach_loop(file)
    try:
        yield loop.path
    finally:
        loop.close()


@contextlib.contextmanager
def _memory_file() -> Iterator[Path]:
    """A file as large as the disk, all of its pages there."""
    with tempfile.NamedTemporaryFile(prefix="hybrid-bench-", dir="/dev/shm") as file:
        for _ in range(DISK_SIZE // len(_CHUNK)):
            file.write(_CHUNK)
        file.flush()
        yield Path(file.name)
