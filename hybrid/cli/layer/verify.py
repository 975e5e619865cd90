"""`hybrid layer verify`: read all of a layer, and check what can be checked."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import trio

from hybrid.build.compact import Advance
from hybrid.build.layer_file import Watcher
from hybrid.build.verify import verify_layer
from hybrid.cli.layer.stacks import LAYERS, is_config, open_one, open_stack
from hybrid.cli.layer_progress import shown_progress
from hybrid.cli.output import print_json
from hybrid.errors import FormatError


@click.command("verify")
@LAYERS
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(layers: tuple[Path, ...], as_json: bool) -> None:
    """Check headers, indexes and the checksum of every block of each layer; read all data.

    Without compression there are no checksums: damage in the data then cannot be seen.
    """
    found = trio.run(_verify, layers)
    if as_json:
        print_json({"layers": found})
    bad = [layer for layer in found if layer["errors"]]
    if not as_json:
        for layer in found:
            click.echo(f"{layer['name']}: {_said(layer)}")
    if bad:
        raise FormatError(f"{len(bad)} of {len(found)} layers are damaged: {bad[0]['errors'][0]}")


def _said(layer: dict[str, Any]) -> str:
    if layer["errors"]:
        return "; ".join(layer["errors"])
    return "good" if layer["checksums"] else "good as far as can be told: it has no checksums"


async def _verify(layers: tuple[Path, ...]) -> list[dict[str, Any]]:
    with shown_progress() as watcher:
        if is_config(layers[0]):
            async with AsyncExitStack() as stack:
                device = await open_stack(layers, stack)
                return [
                    await verify_layer(layer, _begin(watcher, layer.name, layer.stream.size))
                    for layer in device.layers
                ]
        return [result for path in layers for result in await _verify_file(path, watcher)]


async def _verify_file(path: Path, watcher: Watcher) -> list[dict[str, Any]]:
    """One that cannot even be opened does not keep the others from being looked at."""
    async with AsyncExitStack() as stack:
        try:
            return [
                await verify_layer(layer, _begin(watcher, layer.name, layer.stream.size))
                for layer in await open_one(path, stack)
            ]
        except FormatError as error:
            return [{"name": str(path), "checksums": False, "errors": [str(error)]}]


def _begin(watcher: Watcher, name: str, total: int) -> Advance:
    return watcher.begin(Path(name).name, total)
