"""Results on stdout: JSON for machines, aligned text for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print one JSON document, keys in the order they were built."""
    click.echo(json.dumps(value, indent=2))


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Print ``name: value`` lines with the values in one column."""
    width = max((len(name) for name, _ in pairs), default=0) + 1
    for name, value in pairs:
        click.echo(f"{name + ':':<{width}} {_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else printable(str(value))


def printable(text: str) -> str:
    """``text`` with what could steer a terminal or forge a line made visible.

    Names, tags and messages of servers come from others.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header, columns aligned, no colour and no frame (it is for pipes too)."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    for line in [list(header), *cells]:
        click.echo(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        )
