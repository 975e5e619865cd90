"""The tree of a real image, as umoci unpacks it: an independent judge of the OCI rules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support.archives import BLOCK_DEVICE, DIR, LINK, SYMLINK, archive, member
from support.ext4_disks import MIB, Tree, disk, mounted, needs_root, tree_of

pytestmark = needs_root
LIBRARY = str(Path(os.__file__).parent).strip("/")
"""Of the system's Python, below ``/``: usr/lib/python3.11."""


def unpacked(directory: Path, layers: list[bytes]) -> Tree:
    layout, bundle = directory / "layout", directory / "bundle"
    image = f"{layout}:tag"
    umoci("init", "--layout", str(layout))
    umoci("new", "--image", image)
    for number, data in enumerate(layers):
        path = directory / f"{number}.tar"
        path.write_bytes(data)
        umoci("raw", "add-layer", "--image", image, str(path))
    umoci("unpack", "--image", image, str(bundle))
    return tree_of(bundle / "rootfs")


def umoci(*arguments: str) -> None:
    done = subprocess.run(["umoci", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def system_tree(*names: str) -> bytes:
    """Part of this machine's system, as GNU tar packs it."""
    command = ["tar", "-c", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", "/",
               "--pax-option=delete=atime,delete=ctime", *names]  # fmt: skip
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_the_tree_is_that_of_umoci(tmp_path: Path) -> None:
    library = LIBRARY.encode()
    parents = [part.encode() for part in str(Path(LIBRARY).parent).split("/")[1:]]
    top = [*(member(b"usr/" + part, kind=DIR, mode=0o755, mtime=4) for part in parents),
           member(library, kind=DIR, mode=0o755, mtime=7), member(b"usr/", kind=DIR, mode=0o755),
           member(b"usr/share/", kind=DIR, mode=0o755, mtime=6)]  # fmt: skip
    first = archive(*top)[:-1024] + system_tree("usr/share/perl5", f"{LIBRARY}/email")
    second = archive(
        *top,
        member(b"usr/share/perl5/", kind=DIR, mode=0o700, uid=3, mtime=9),
        member(b"usr/share/perl5/.wh..wh..opq"),
        member(b"usr/share/perl5/new", b"content", mode=0o4755, mtime=10, xattrs={b"user.x": b"1"}),
        member(library, kind=DIR, mode=0o755, mtime=3),
        member(library + b"/email", kind=DIR, mode=0o755, mtime=4),
        member(library + b"/email/.wh.parser.py"),
        member(library + b"/email/hard", kind=LINK, link=b"usr/share/perl5/new",
               mode=0o4755, mtime=10),
        member(b"soft", kind=SYMLINK, link=b"./usr//share/../share/", mtime=11),
        member(b"device", kind=BLOCK_DEVICE, device=(300, 70000), mtime=12),
    )  # fmt: skip
    expected = unpacked(tmp_path, [first, second])
    with disk(256 * MIB) as made:
        made.apply(first, second)
        with mounted(made.dump(tmp_path / "disk")) as root:
            found = tree_of(root)
    # What no archive says: umoci's bundle has a root directory of its own time and mode.
    for tree in (found, expected):
        tree[b""] = {}
    assert set(found) == set(expected)
    assert len(found) > 60
    for path, row in expected.items():
        assert found[path] == row, path
