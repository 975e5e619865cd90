"""A tree unpacked into a writable mount, committed, pushed, and mounted again by its new tag."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import golden_image
from support.image_bench import ImageBench
from support.registry import RealRegistry
from support.tree import read_tree
from test_writable_images import bench, mount, upper

__all__ = ["bench", "upper"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
REPOSITORY = "golden/committed"


@pytest.fixture(scope="module")
def registry() -> Iterator[RealRegistry]:
    with RealRegistry() as running:
        yield running


def package_tree(target: Path, files: int) -> Path:
    """An archive of many small files, with what packages have beside them."""
    dice = random.Random(files)
    path = target / "tree.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        names = [f"tree/d{a}/e{b}" for a in range(97) for b in range(13)]
        for name in ["tree", *(f"tree/d{a}" for a in range(97)), *names]:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_500_000_000
            archive.addfile(info)
        for number in range(files):
            info = tarfile.TarInfo(file_name(number))
            info.mode = dice.choice((0o644, 0o755, 0o4755, 0o600))
            info.uid, info.gid = dice.choice((0, 1000, 70_000)), dice.choice((0, 33))
            info.mtime = 1_600_000_000 + number
            if number % 100 == 7:
                info.type, info.linkname = tarfile.SYMTYPE, f"../nowhere/{number}"
            elif number % 100 == 8:
                info.type, info.linkname = tarfile.LNKTYPE, file_name(number - 2)
            elif number % 50 == 3:
                info.pax_headers = {"SCHILY.xattr.user.origin": f"package {number}"}
            data = dice.randbytes(dice.randrange(2000)) if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def file_name(number: int) -> str:
    return f"tree/d{number % 97}/e{number % 13}/file-{number}"


def unpack(archive: Path, place: Path) -> None:
    command = ["tar", "-x", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"]
    command.append("--delay-directory-restore")
    subprocess.run([*command, "-f", archive, "-C", place], check=True)


def check_round_trip(
    bench: ImageBench, registry: RealRegistry, upper: Path, tmp_path: Path, mode: str, files: int
) -> None:
    image = golden_image.push(registry)
    archive = package_tree(tmp_path, files)
    reference = tmp_path / "reference"
    reference.mkdir()
    unpack(archive, reference)
    expected = read_tree(reference / "tree")

    mount(bench, "--mode", mode, "--upper", upper, image, bench.mountpoint)
    before = read_tree(bench.mountpoint)
    unpack(archive, bench.mountpoint)
    new = f"{registry.host}/{REPOSITORY}:{mode}"
    done = json.loads(
        bench.succeed("commit", "--json", "-m", "a tree", "--to", new, bench.mountpoint)
    )
    (bench.mountpoint / "later").write_text("not in it")
    bench.succeed("umount", bench.mountpoint)

    bench.mount(new, bench.mountpoint, "--mode", mode, "--json")
    found = read_tree(bench.mountpoint)
    assert "/later" not in found
    assert read_tree(bench.mountpoint / "tree") == expected
    ours = {path for path in found if path == "/tree" or path.startswith("/tree/")}
    assert {path: found[path] for path in found.keys() - ours - {"/"}} == {
        path: before[path] for path in before.keys() - {"/"}
    }
    inspected = json.loads(bench.succeed("inspect", "--json", new))
    assert len(inspected["layers"]) == 4
    assert inspected["layers"][-1]["user_tag"] == "a tree"
    bench.succeed("umount", bench.mountpoint)

    # Unmounted, the changes are those of later; an image in a layout takes them too.
    layout = f"oci:{tmp_path / 'out'}:later"
    bench.succeed("commit", "--to", layout, upper)
    bench.mount(layout, bench.mountpoint, "--mode", mode, "--json")
    assert (bench.mountpoint / "later").read_text() == "not in it"
    bench.succeed("umount", bench.mountpoint)
    assert done["reference"].startswith(new)


@needs_root
def test_twenty_thousand_files_through_fuse(
    bench: ImageBench, registry: RealRegistry, upper: Path, tmp_path: Path
) -> None:
    check_round_trip(bench, registry, upper, tmp_path, "fuse", 20_000)


@pytest.mark.guest
def test_a_tree_through_tcmu(
    bench: ImageBench, registry: RealRegistry, upper: Path, tmp_path: Path
) -> None:
    check_round_trip(bench, registry, upper, tmp_path, "tcmu", 1500)
