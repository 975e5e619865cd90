"""The archives and trees of the reference: the same must be seen, but for its weaknesses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from support import golden
from support.ext4_disks import MIB, disk, mounted, needs_root, tree_of

pytestmark = needs_root
GIB = 1024 * MIB

# layer-apply.md, section 12: the reference drops fractions of times, and ids of PAX headers.
BETTER = {
    b"names/frac-mtime": ("mtime", 1_600_000_000_000_000_000, 1_600_000_000_500_000_000),
    b"names/uid-large": ("owner", (1234567, 0), (1234567, 7654321)),
}


def wanted(manifest: Path) -> dict[bytes, dict[str, Any]]:
    """A manifest as ``tree_of`` has it."""
    tree = {}
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        path = row["path"].encode("utf-8", "surrogateescape").strip(b"/")
        mode = int(row["mode"], 8)
        if path == b"lost+found":
            continue
        found = tree[path] = {
            "kind": stat.S_IFMT(mode), "mode": stat.S_IMODE(mode),
            "owner": (row["uid"], row["gid"]), "mtime": row["mtime"] * 10**9,
            "links": 0 if stat.S_ISDIR(mode) else row["nlink"],
            "xattrs": {
                name.encode(): bytes.fromhex(value)
                for name, value in row.get("xattrs_hex", {}).items()
            },
        }  # fmt: skip
        if "sha256" in row:
            found["content"] = row["sha256"]
        if "link" in row:
            found["target"] = row["link"].encode("utf-8", "surrogateescape")
        if "rdev" in row:
            found["device"] = tuple(row["rdev"])
    return tree


@pytest.mark.parametrize(("layers", "manifest"), [(1, "L1"), (3, "img3")])
def test_trees_of_the_reference(tmp_path: Path, layers: int, manifest: str) -> None:
    tars = [golden.tree() / "tars" / f"layer{i + 1}.tar.gz" for i in range(layers)]
    with disk(GIB) as made:
        made.apply(*(path.read_bytes() for path in tars))
        with mounted(made.dump(tmp_path / "disk")) as root:
            found = tree_of(root)
    expected = wanted(golden.tree() / "img" / f"{manifest}.manifest.jsonl")
    assert set(found) == set(expected)
    for path, row in expected.items():
        if path in BETTER:
            key, theirs, ours = BETTER[path]
            if row[key] == theirs:
                row[key] = ours
        if row["kind"] == stat.S_IFLNK and found[path]["target"] != row["target"]:
            # The reference cleans targets; the archive has them as they must be.
            assert os.path.normpath(found[path]["target"]) == row["target"]
            row["target"] = found[path]["target"]
        assert found[path] == row, path


def test_the_zstd_archive_is_the_same_layer() -> None:
    tars = golden.tree() / "tars"
    with disk(GIB) as one, disk(GIB) as other:
        for made, second in ((one, "layer2.tar.gz"), (other, "layer2.tar.zst")):
            made.apply((tars / "layer1.tar.gz").read_bytes(), (tars / second).read_bytes())
        assert one.layers[-1].extents == other.layers[-1].extents
