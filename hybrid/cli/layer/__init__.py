"""`hybrid layer`: work on layer files and writable layers. One module per verb.

A LAYER is a sealed layer, in whatever wrappers; a writable pair is two files, DATA and INDEX.
Several layers stand bottom first, or a config.v1.json names them.
"""

from __future__ import annotations

import click

from hybrid.cli import LazyGroup

_VERBS = {
    "info": ("hybrid.cli.layer.info", "Show headers, sizes, uuids, indexes."),
    "verify": ("hybrid.cli.layer.verify", "Read everything, and check it."),
    "dump": ("hybrid.cli.layer.dump", "Write the merged disk to a raw or qcow2 file."),
    "import": ("hybrid.cli.layer.import_raw", "Make a layer of a raw file or block device."),
    "merge": ("hybrid.cli.layer.merge", "Make one layer of a stack."),
    "commit": ("hybrid.cli.layer.commit", "Make a compact layer of a writable or sealed one."),
    "create": ("hybrid.cli.layer.create", "Make an empty writable layer."),
    "seal": ("hybrid.cli.layer.seal", "Seal a writable layer in place."),
}


@click.group("layer", cls=LazyGroup, verbs=_VERBS, no_args_is_help=False)
def command() -> None:
    """Work on layers, bottom first, or on those that a config.v1.json names."""
