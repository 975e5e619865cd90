"""Which layers were converted earlier, and in which repositories they are: a small database.

It lies in the cache directory, and is no more than a hint about where work was done: whatever it
says is used only if the destination has the blob. Without it everything is converted anew.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.core.cachefile import check_private
from hybrid.core.reference import RegistryReference

logger = logging.getLogger("hybrid")

FILE_NAME = "converted.sqlite3"
_VERSION = 1
_MOST_ROWS = 100_000
_PLACES = 4
"""Repositories of a registry that are asked for a blob."""
_WAIT_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE layers (
    key TEXT PRIMARY KEY, parent TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE places (
    digest TEXT NOT NULL, host TEXT NOT NULL, repository TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (digest, host, repository)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Remembered:
    """A layer that was converted earlier. ``size`` in bytes."""

    digest: str
    size: int
    parent: str
    """The digest of the layer below it at that time; "" for the bottom one."""


class Memory:
    """Calls take less than a millisecond, unless another process writes at the moment. Not for
    several threads. Never fails: what goes wrong is told once.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._database: sqlite3.Connection | None = None
        with self._guarded():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Whoever can write to it decides what goes into images of ours.
            check_private(directory)
            database = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
            self._database = database
            self._prepare(database)

    def find(self, key: str) -> Remembered | None:
        """What became of a layer with this key."""
        with self._guarded():
            if self._database is not None:
                row = self._database.execute(
                    "SELECT digest, size, parent FROM layers WHERE key = ?", (key,)
                ).fetchone()
                return Remembered(*row) if row else None
        return None

    def add(self, key: str, layer: Remembered) -> None:
        """A layer has this key, and is stored somewhere."""
        with self._guarded():
            if self._database is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)",
                    (key, layer.parent, layer.digest, layer.size),
                )

    def places(self, digest: str, host: str) -> list[str]:
        """Repositories of a registry that have had this blob, the latest first."""
        with self._guarded():
            if self._database is not None:
                rows = self._database.execute(
                    "SELECT repository FROM places WHERE digest = ? AND host = ?"
                    " ORDER BY number DESC LIMIT ?",
                    (digest, host, _PLACES),
                ).fetchall()
                return [row[0] for row in rows]
        return []

    def add_place(self, digest: str, ref: RegistryReference) -> None:
        """The repository has the blob."""
        with self._guarded():
            if self._database is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO places SELECT ?, ?, ?, coalesce(max(number), 0) + 1"
                    " FROM places WHERE digest = ?",
                    (digest, ref.api_host, ref.repository, digest),
                )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        rows = 0
        if version == _VERSION:
            (rows,) = database.execute("SELECT count(*) FROM layers").fetchone()
        if version != _VERSION or rows > _MOST_ROWS:
            for statement in ("DROP TABLE IF EXISTS layers", "DROP TABLE IF EXISTS places"):
                database.execute(statement)
            for statement in filter(str.strip, _SCHEMA.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            logger.warning("what was converted earlier is not known: %s: %s", self._path, error)
            self.close()
