"""umoci: an independent tool that makes plain images, and unpacks them by the rules of OCI."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.ext4_disks import Tree, tree_of


def umoci(*arguments: object) -> None:
    command = ["umoci", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_image(layout: Path, tag: str, layers: list[bytes]) -> str:
    """A layout with an image of these archives; returns its name for umoci."""
    image = f"{layout}:{tag}"
    if not layout.exists():
        umoci("init", "--layout", layout)
    umoci("new", "--image", image)
    path = layout.with_suffix(".tar")
    for data in layers:
        path.write_bytes(data)
        umoci("raw", "add-layer", "--image", image, path)
    path.unlink()
    return image


def unpacked(directory: Path, layers: list[bytes]) -> Tree:
    """The tree that these archives make, as root."""
    return unpacked_image(make_image(directory / "oracle", "tag", layers), directory / "bundle")


def unpacked_image(image: str, bundle: Path) -> Tree:
    umoci("unpack", "--image", image, bundle)
    return tree_of(bundle / "rootfs")
