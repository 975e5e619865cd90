"""Make the demo image and push it: files of this machine in an ext4 of three overlaybd layers.

    layer 1   Python's library and the C compiler, a message of the day, a file to be deleted
    layer 2   the message changed, the file deleted
    layer 3   a program added

Nothing is downloaded for it, and it is large enough to show that only a part is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from layers import LayerFile, differences, write_layer
from push import push_image

_UUID = "9f1c5d0e-6a3b-4c1e-8e57-2d1f0a7b6c55"
_BULK = (Path("/usr/lib/python3.11"), Path("/usr/lib/gcc"))
_SKIPPED = shutil.ignore_patterns("__pycache__", "dist-packages", "*.a")
_PROGRAM = Path("/usr/bin/python3.11")


def make_tree(tree: Path) -> None:
    """Lay out the files of the first layer."""
    for directory in ("etc", "srv"):
        (tree / directory).mkdir(parents=True)
    (tree / "etc/motd").write_text("Hello from layer 1. You should not see this.\n")
    (tree / "etc/obsolete.conf").write_text("deleted = in layer 2\n")
    for source in _BULK:
        target = tree / source.relative_to("/")
        shutil.copytree(source, target, symlinks=True, ignore=_SKIPPED)


def disk_size(tree: Path) -> int:
    """Bytes of a virtual disk with ample room for the tree, in whole MiB."""
    mib = sum(path.lstat().st_size for path in tree.rglob("*")) >> 20
    return (2 * mib + 64) << 20


def make_ext4(disk: Path, tree: Path) -> None:
    """Make the file system of the first layer; no journal, as overlaybd's converters do."""
    with disk.open("wb") as file:
        file.truncate(disk_size(tree))
    options = ["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal", "-L", "hybrid-demo"]
    options += ["-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=1"]
    subprocess.run(["mkfs.ext4", *options, "-d", str(tree), str(disk)], check=True)


def change_ext4(old: Path, new: Path, commands: list[str]) -> None:
    """Copy a disk and change files in the copy, without mounting it."""
    subprocess.run(["cp", "--sparse=always", str(old), str(new)], check=True)
    script = new.with_suffix(".debugfs")
    script.write_text("\n".join(commands) + "\n")
    done = subprocess.run(
        ["debugfs", "-w", "-f", str(script), str(new)], check=True, capture_output=True, text=True
    )
    # debugfs succeeds whatever happens; its complaints stand under the banner with its version.
    complaints = done.stderr.splitlines()[1:]
    if complaints:
        sys.exit(f"debugfs could not change the demo image: {complaints[0]}")


def make_disks(directory: Path) -> list[Path]:
    """The raw disk after each of the three layers."""
    tree = directory / "tree"
    disks = [directory / f"disk{number}.raw" for number in (1, 2, 3)]
    make_tree(tree)
    make_ext4(disks[0], tree)
    motd = directory / "motd"
    motd.write_text("Hello from an overlaybd image, mounted lazily by hybrid.\n")
    change = ["rm /etc/motd", f"write {motd} /etc/motd", "rm /etc/obsolete.conf"]
    change_ext4(disks[0], disks[1], change)
    addition = ["mkdir /srv/app", f"write {_PROGRAM} /srv/app/python"]
    change_ext4(disks[1], disks[2], addition)
    return disks


def make_layers(directory: Path) -> list[LayerFile]:
    """The three layers, bottom first."""
    layers = []
    before = None
    for number, disk in enumerate(make_disks(directory), 1):
        path = directory / f"layer{number}.tar"
        layer = write_layer(path, disk.stat().st_size, differences(disk, before))
        print(f"layer {number}: {layer.size / 1e6:7.2f} MB  {layer.digest[:19]}...")
        layers.append(layer)
        before = disk
    return layers


def main() -> None:
    base_url, repository, tag, directory = sys.argv[1:]
    digest = push_image(base_url, repository, tag, make_layers(Path(directory)))
    print(f"pushed: {repository}:{tag}  {digest[:19]}...")


if __name__ == "__main__":
    main()
