"""Where the time goes in mode tcmu: its servers under fio, and the read path of an image alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.data import DISK_SIZE, Data
from bench.devices import layers_name
from bench.fio import RANDOM_1, RANDOM_16, SEQUENTIAL, Workload
from bench.fronts import Environment, tcmu_disk
from bench.modes.measure import WORKLOADS
from bench.modes.targets import NULL_DEVICE
from bench.profiles import show_read_path, show_server

_RANDOM_READS = 5000


def show_profiles(data: Data) -> None:
    """Print all of them."""
    _show("null Device", NULL_DEVICE, WORKLOADS)
    _show_image(data, WORKLOADS)


def explain(missed: Sequence[str], data: Data) -> None:
    """Show where the time goes that a missed aim is about."""
    about = {"1 MiB": SEQUENTIAL, "QD16": RANDOM_16, "QD1,": RANDOM_1}
    for key in ("(c)", "(e)"):
        titles = [title for title in missed if title.startswith(key)]
        workloads = [w for text, w in about.items() if any(text in title for title in titles)]
        if workloads and key == "(c)":
            _show("null Device", NULL_DEVICE, workloads)
        elif workloads:
            _show_image(data, workloads)


def _show_image(data: Data, workloads: Sequence[Workload]) -> None:
    _show("3 layers, lz4 4K", layers_name(data.layers("lz4")), workloads)
    show_read_path(data, "lz4", _RANDOM_READS)


def _show(title: str, device: str, workloads: Sequence[Workload]) -> None:
    @contextmanager
    def disk(environment: Environment) -> Iterator[Path]:
        with tcmu_disk(device, DISK_SIZE, environment=environment) as (node, _):
            yield node

    show_server(f"TCMU server, {title}", disk, workloads)
