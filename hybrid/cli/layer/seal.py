"""`hybrid layer seal`: a writable layer becomes a read-only one, in place."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from hybrid.core.sealing import seal_pair


@click.command("seal")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
def command(data: Path, index: Path) -> None:
    """Append the index to DATA, which is then a sealed layer; INDEX is not needed any more.

    Garbage stays in it: `hybrid layer commit DATA` makes a compact layer of it.
    """
    trio.run(seal_pair, data, index)
