"""`hybrid layer info`: what headers and indexes say, of sealed layers and of writable ones."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import trio

from hybrid.cli.layer.stacks import LAYERS, open_stack, pairs_of
from hybrid.cli.output import print_json, print_pairs
from hybrid.core.layer import Layer
from hybrid.core.pair_summary import live_bytes, summarize_pair


@click.command("info")
@LAYERS
@click.option("--segments", is_flag=True, help="List the merged index as well (sectors).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(layers: tuple[Path, ...], segments: bool, as_json: bool) -> None:
    """Show headers, sizes, uuids and indexes, and what the merged disk is like.

    A LAYER is a sealed layer, DATA+INDEX of a writable one, or the directory of a writable one.
    """
    found = trio.run(_info, layers, segments)
    if as_json:
        print_json(found)
        return
    for number, layer in enumerate(found["layers"]):
        click.echo(f"layer {number}" + (" (bottom)" if not number else ""))
        print_pairs([(f"  {name.replace('_', ' ')}", value) for name, value in layer.items()])
    click.echo("merged")
    merged = {name: value for name, value in found["merged"].items() if name != "index"}
    print_pairs([(f"  {name.replace('_', ' ')}", value) for name, value in merged.items()])
    for segment in found["merged"].get("index", ()):
        click.echo(" ".join(str(int(number)) for number in segment))


async def _info(layers: tuple[Path, ...], with_index: bool) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        device = await open_stack(layers, stack)
        for layer in device.layers:
            await layer.check_head()
        merged: dict[str, Any] = {
            "virtual_size": device.size,
            "segments": len(device.segments),
            "mapped_bytes": live_bytes(device.segments),
        }
        if with_index:
            merged["index"] = [list(segment) for segment in device.segments]
        pairs = {str(data): (data, index) for data, index in pairs_of(layers)}
        described = [_describe(layer, pairs.get(layer.name)) for layer in device.layers]
        return {"layers": described, "merged": merged}


def _describe(layer: Layer, pair: tuple[Path, Path] | None) -> dict[str, Any]:
    described = {"name": layer.name, **layer.describe()}
    if pair is not None:
        described |= summarize_pair(*pair)
    return described
