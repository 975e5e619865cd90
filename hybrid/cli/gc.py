"""``hybrid gc``: remove what servers that died, and commands that were killed, have left behind."""

from __future__ import annotations

import logging
from typing import Any

import click

from hybrid.cli.output import print_json, printable
from hybrid.mount.garbage import Outcome, collect_garbage

logger = logging.getLogger("hybrid")


@click.command("gc")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Remove what `hybrid doctor` calls removable. Never touches what lives or can be resumed."""
    outcomes = []
    for outcome in collect_garbage():
        outcomes.append(outcome)
        if not as_json:
            _print(outcome)
    if as_json:
        print_json([_to_json(outcome) for outcome in outcomes])
    elif not outcomes:
        logger.info("there is nothing to remove")
    failed = next((outcome.error for outcome in outcomes if outcome.error), None)
    if failed is not None:
        ctx.exit(failed.exit_code)


def _print(outcome: Outcome) -> None:
    left = outcome.leftover
    if outcome.error is not None:
        logger.error("%s", printable(str(outcome.error)))
        return
    word = "removed" if outcome.removed else "kept"
    line = f"{word} {left.kind} {left.name}: {left.text}"
    click.echo(printable(line if outcome.removed else f"{line} ({left.remedy})"))


def _to_json(outcome: Outcome) -> dict[str, Any]:
    error = str(outcome.error) if outcome.error is not None else None
    return {**outcome.leftover.to_json(), "removed": outcome.removed, "error": error}
