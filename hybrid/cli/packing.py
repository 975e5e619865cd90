"""The options of every verb that writes a layer or a ZFile: how it is compressed and wrapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hybrid.core.lsmt import is_uuid

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

logger = logging.getLogger("hybrid")

_SIZES = {f"{kib}k": kib * 1024 for kib in (4, 8, 16, 32, 64)}
_MAX_THREADS = 64


def packing_options(function: Decorated) -> Decorated:
    """``compress``, ``block_size`` (bytes) and ``threads``, as arguments of these names."""
    for option in reversed(
        (
            click.option(
                "--compress", type=click.Choice(("lz4", "zstd", "none")), default="lz4",
                show_default=True, help="How blocks are compressed.",
            ),
            click.option(
                "--block-size", type=click.Choice(tuple(_SIZES)), default="4k",
                show_default=True, callback=_block_size,
                help="Bytes that are compressed together: larger is smaller, and slower to read.",
            ),
            click.option(
                "--threads", type=click.IntRange(1, _MAX_THREADS), default=default_threads,
                help="Threads that compress [one for each processor].",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def default_threads() -> int:
    """The processors that this process may use."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def _block_size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    return _SIZES[value]


def warn_of_large_blocks(compress: str, block_size: int) -> None:
    """Spec: zfile 11."""
    if compress != "none" and block_size == 65536:
        logger.warning(
            "blocks of 64k that do not compress cannot be read by overlaybd's own tools; "
            "hybrid reads them, and 32k is safe"
        )


def check_uuid(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A uuid in capital letters, "" for none; for click's ``callback``."""
    if value and not is_uuid(value):
        raise click.BadParameter(f"{value!r} is no uuid (8-4-4-4-12 hexadecimal digits)")
    return value.upper()


def check_tag(context: click.Context, parameter: click.Parameter, value: str) -> bytes:
    """A user tag, which a layer has 256 bytes for; for click's ``callback``."""
    tag = value.encode("utf-8", "surrogateescape")
    if len(tag) > 256:
        raise click.BadParameter(f"it has {len(tag)} bytes; a layer has room for 256")
    return tag
