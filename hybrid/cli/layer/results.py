"""A new layer, written to a file and told of."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid.build.layer_file import LayerJob, WrittenLayer, make_layer
from hybrid.cli.layer_progress import shown_progress
from hybrid.cli.output import print_json
from hybrid.core.output_file import output_file

OUTPUT = click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Layer to write; whole or not at all.",
)  # fmt: skip
TAR = click.option("--tar/--no-tar", default=True, show_default=True, help="Wrap it in tar.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


async def write_layer_file(job: LayerJob, output: Path) -> WrittenLayer:
    """Make the layer at ``output``."""
    with shown_progress() as watcher, output_file(output) as target:
        return await make_layer(job, target, watcher)


def print_layer(written: WrittenLayer, as_json: bool) -> None:
    """Digest and size, for people and for programs."""
    if as_json:
        print_json(written.to_json())
    else:
        click.echo(f"{written.digest} {written.size}")
