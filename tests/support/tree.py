"""A mounted file tree as rows like those of the golden manifests."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]


def read_tree(root: Path) -> Tree:
    """Every file below ``root`` by its path from there, with contents as digests."""
    found: Tree = {}
    pending = [root]
    while pending:
        path = pending.pop()
        found["/" + path.relative_to(root).as_posix().removeprefix(".")] = _row(path)
        if path.is_dir() and not path.is_symlink():
            pending += path.iterdir()
    return found


def read_manifest(manifest: Path) -> Tree:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return {row.pop("path"): row for row in rows}


def _row(path: Path) -> dict[str, Any]:
    status = path.lstat()
    row: dict[str, Any] = {
        "mode": f"{status.st_mode:06o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": int(status.st_mtime),
        "nlink": status.st_nlink,
    }
    if stat.S_ISREG(status.st_mode):
        row["size"] = status.st_size
        with path.open("rb") as file:
            row["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        row["link"] = os.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        row["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        row["xattrs_hex"] = {
            name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)
        }
    return row
