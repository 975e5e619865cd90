"""Removing what is left behind, for ``hybrid gc``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.errors import HybridError
from hybrid.mount.leftover import Leftover
from hybrid.mount.leftovers import find_leftovers


@dataclass(frozen=True)
class Outcome:
    """What became of one leftover."""

    leftover: Leftover
    removed: bool = False
    error: HybridError | None = None
    """Why it could not be removed."""


def collect_garbage() -> Iterator[Outcome]:
    """Remove all that is removable, one by one; the rest is only told. Raises as find_leftovers."""
    for leftover in find_leftovers():
        if leftover.remove is None:
            yield Outcome(leftover)
            continue
        try:
            leftover.remove()
        except HybridError as error:
            yield Outcome(leftover, error=error)
        else:
            yield Outcome(leftover, removed=True)
