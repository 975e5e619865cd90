"""``upper.json``: what stands in the directory of a writable layer, and which names are its files.

    upper.json        what stands here (Manifest): replaced as a whole, the last step of each change
    data-N, index-N   the pair that is written to (spec: lsmt 8); N counts from 1
    data-M, M < N     sealed by a snapshot, read-only since then, bottom first
    checkpoint-*      the index as of a moment, for a commit that is running

The files of the pair are ``writable_data`` and ``writable_index`` for N = 1, the names that other
implementations give to theirs (spec: tar-and-blob 5).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybrid.core.lsmt import BLOCK
from hybrid.core.storage import Storage
from hybrid.core.upper_log import UNFLUSHED_BEGIN
from hybrid.errors import FormatError, NotFoundError

MANIFEST = "upper.json"
_VERSION = 1
_FIRST = ("writable_data", "writable_index")
_MAX_SIZE = 1 << 20
_OURS = re.compile(
    r"upper\.json|writable_data|data-[0-9]+|checkpoint-[0-9a-f]{16}"
    r"|(writable_index|index-[0-9]+)(\.unflushed)?"
)
"""Names of files of a layer; each may also end in ``.new``, while it is made."""
_UNWRITTEN = {
    MANIFEST: _MAX_SIZE,
    f"{MANIFEST}.new": _MAX_SIZE,
    _FIRST[0]: BLOCK,
    _FIRST[1]: BLOCK,
    f"{_FIRST[1]}.unflushed": UNFLUSHED_BEGIN,
}
"""The files of a layer that nothing was written to, and how many bytes they have at most."""


@dataclass(frozen=True)
class Manifest:
    """The contents of ``upper.json``. Sizes in bytes."""

    image: str
    """The image that the layer was made over, as it was named."""
    digest: str
    """Of its manifest; "" if it has none."""
    lower: str
    """``identity()`` of its disk: the layer fits nothing else. "": there is nothing below."""
    size: int
    """Of the disk."""
    data: str = _FIRST[0]
    index: str = _FIRST[1]
    sealed: list[str] = field(default_factory=list)
    """Files of sealed layers, bottom first."""
    number: int = 1
    """Of the pair: how often there was a new one."""
    clean: bool = True
    """Whether the last user ended orderly; false while it is in use."""
    id: str = ""
    """Tells this layer from others, whatever is written to it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How the image can be opened again, as the caller has it."""
    version: int = _VERSION


_TYPES = {name: type(value) for name, value in asdict(Manifest("", "", "", 0)).items()}


def read_manifest(directory: Path) -> Manifest:
    """Raises NotFoundError (there is none) or FormatError."""
    path = directory / MANIFEST
    try:
        file = Storage().open(path, writable=False)
    except NotFoundError:
        raise NotFoundError(f"{directory} is no writable layer: it has no {MANIFEST}") from None
    try:
        found = json.loads(file.read(0, min(file.size(), _MAX_SIZE)))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    finally:
        file.close()
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise FormatError(f"{path} is not of version {_VERSION}", hint="a newer hybrid made it")
    for name, kind in _TYPES.items():
        if type(found.get(name)) is not kind:
            raise FormatError(f"{path} is damaged: {name} is missing or wrong")
    names = [found["data"], found["index"], *found["sealed"]]
    if not all(isinstance(name, str) and _OURS.fullmatch(name) for name in names):
        raise FormatError(f"{path} is damaged: its files are not in the directory")
    return Manifest(**{name: found[name] for name in _TYPES})


def place_manifest(storage: Storage, directory: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the old one; durable once the directory is synchronised."""
    new = directory / f"{MANIFEST}.new"
    storage.remove(new)
    file = storage.create(new)
    try:
        file.write(0, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
        file.sync()
    finally:
        file.close()
    storage.replace(new, directory / MANIFEST)


def is_upper_directory(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def files_of(directory: Path) -> list[Path]:
    """All files there that have names of ours. Others are none of our business."""
    return [
        path
        for path in directory.iterdir()
        if _OURS.fullmatch(path.name.removesuffix(".new")) and not path.is_dir()
    ]


def holds_nothing(directory: Path) -> bool:
    """Whether there is nothing there but a layer that was never written to, whole or in part.

    True for an empty directory. Raises OSError.
    """
    with os.scandir(directory) as entries:
        return all(
            entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_size <= _UNWRITTEN.get(entry.name, -1)
            for entry in entries
        )
