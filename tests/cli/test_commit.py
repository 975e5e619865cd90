"""`hybrid commit` of changes that are not mounted: to files, layouts and a registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ext4_images, golden, golden_image, oci
from support.builders import SECTOR
from support.commands import fail, run, succeed, succeed_json
from support.registry import RealRegistry
from support.uppers import change

from hybrid.core.upper_directory import WritableDisk, exclusive
from hybrid.errors import BusyError, FormatError, NotFoundError, UnsupportedError, UsageError

MARK = b"hybrid was here " * 32
PLACE = 600 << 20
"""In the part of the golden image that its file system does not use."""


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return golden_image.layout(tmp_path / "layout")


@pytest.fixture
def upper(layout: str, tmp_path: Path) -> Path:
    directory = tmp_path / "upper"
    change(layout, directory, write_mark)
    return directory


async def write_mark(disk: WritableDisk) -> None:
    # Over the boot block, which belongs to no file and is not free either.
    await disk.pwrite(0, MARK[:SECTOR])
    await disk.pwrite(PLACE, MARK)


def document(reference: str) -> tuple[Any, Any]:
    """Manifest and config of an image in a layout, by its reference with a digest."""
    name, _, digest = reference.rpartition("@")
    blobs = Path(name.split(":")[1]) / "blobs" / "sha256"
    manifest = json.loads((blobs / digest.removeprefix("sha256:")).read_text())
    for blob in (manifest["config"], *manifest["layers"]):
        content = (blobs / blob["digest"].removeprefix("sha256:")).read_bytes()
        assert blob["digest"] == oci.digest_of(content)
        assert blob["size"] == len(content)
    config = (blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text()
    return manifest, json.loads(config)


def dump(layers: list[Path], target: Path) -> None:
    succeed("layer", "dump", *layers, "-o", target)


def test_to_a_file(upper: Path, tmp_path: Path) -> None:
    out = tmp_path / "layer"
    told = succeed_json("commit", upper, "-o", out, "-m", "why")
    assert told["digest"] == oci.digest_of(out.read_bytes())
    assert told["parent_uuid"].startswith("CCCCCCCC"), "the uppermost layer of the image"
    assert told["data_bytes"] == SECTOR, "the free block is left out"
    (found,) = succeed_json("layer", "info", out)["layers"]
    assert (found["wrapper"], found["user_tag"]) == ("tar", "why")
    assert (found["uuid"], found["virtual_size"]) == (told["uuid"], 1 << 30)
    line = succeed("commit", upper, "-o", out, "-m", "why")
    assert line.split() == [told["digest"], str(told["size"])]


def test_to_a_layout(upper: Path, tmp_path: Path) -> None:
    target = f"oci:{tmp_path / 'new'}:v2"
    told = succeed_json("commit", upper, "--to", target, "-m", "why")
    assert told["reference"].startswith(f"{target}@sha256:")
    manifest, config = document(told["reference"])
    assert [layer["digest"] for layer in manifest["layers"]] == [
        *(oci.digest_of(blob) for blob in golden_image.layers()),
        told["layer"]["digest"],
    ]
    top = manifest["layers"][-1]["annotations"]
    assert top[oci.PREFIX + "blob-fs-type"] == "ext4"
    assert config["rootfs"]["diff_ids"][-1] == told["layer"]["digest"]
    assert config["history"] == [{"created_by": "hybrid commit", "comment": "why"}]
    found = succeed_json("inspect", target)
    assert [layer["uuid"][:8] for layer in found["layers"][:3]] == [c * 8 for c in "ABC"]
    assert found["layers"][3]["parent_uuid"] == found["layers"][2]["uuid"]
    assert succeed("commit", upper, "--to", target, "-m", "why").strip() == told["reference"]
    # And once more with changes over the new image.
    change(target, tmp_path / "upper2", write_mark)
    third = succeed("commit", tmp_path / "upper2", "--to", target).strip()
    assert len(document(third)[0]["layers"]) == 5


def test_to_the_layout_of_the_image(upper: Path, layout: str, tmp_path: Path) -> None:
    reference = succeed("commit", upper, "--to", f"oci:{tmp_path / 'layout'}:v2").strip()
    assert len(document(reference)[0]["layers"]) == 4
    assert len(succeed_json("inspect", layout)["layers"]) == 3, "the old name is as it was"


def test_times_come_from_the_environment(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    _, config = document(succeed("commit", upper, "--to", f"oci:{tmp_path / 'new'}:v2").strip())
    assert config["created"] == config["history"][0]["created"] == "2001-09-09T01:46:40Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert "SOURCE_DATE_EPOCH" in fail(3, "commit", upper, "--to", f"oci:{tmp_path / 'new'}:v3")


def test_an_acceleration_layer_is_left_out(tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "layout")
    blobs = [*golden_image.layers(), b"trace"]
    config = oci.image_config(blobs)
    for blob in (*blobs, config):
        builder.put(blob)
    layers = [oci.native_layer(blob) for blob in blobs[:-1]]
    layers.append(oci.native_layer(blobs[-1], acceleration_layer="yes"))
    manifest = oci.manifest_of(layers, config)
    builder.put(manifest)
    annotations = {oci.REF_NAME: "v1"}
    builder.entries.append(oci.descriptor(manifest, oci.OCI_MANIFEST, annotations=annotations))
    builder.write_index()
    change(f"oci:{tmp_path / 'layout'}:v1", tmp_path / "upper", write_mark)
    done = run("commit", tmp_path / "upper", "--to", f"oci:{tmp_path / 'new'}:v2")
    assert done.returncode == 0
    assert "acceleration layer" in done.stderr
    new, config_of_new = document(done.stdout.strip())
    assert len(new["layers"]) == len(config_of_new["rootfs"]["diff_ids"]) == 4


# --- a registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    with RealRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def test_to_a_registry(registry: RealRegistry, upper: Path, tmp_path: Path) -> None:
    target = f"{registry.host}/new/app:v2"
    told = succeed_json("commit", upper, "--to", target, "--insecure")
    assert told["reference"].startswith(f"{target}@sha256:")
    found = succeed_json("inspect", target, "--insecure")
    assert told["reference"].endswith(found["digest"])
    assert found["layers"][3]["name"] == told["layer"]["digest"]
    # From there to there: the blobs are in another repository of the same registry already.
    again = f"{registry.host}/other/app:v3"
    succeed("commit", upper, "--to", again, "--insecure")
    assert succeed_json("inspect", again, "--insecure")["digest"] == found["digest"]


# --- configs of other implementations


@pytest.mark.parametrize(
    ("directory", "config", "row"),
    [
        ("lsmt", "w.config.json", "w"),
        ("lsmt", "wu.config.json", "wu"),
        ("img", "img2rw.config.json", "img2rw"),
        ("img", "img2sp.config.json", "img2sp"),
        ("img", "img-v0.config.json", "img-v0"),
    ],
)
def test_golden_uppers(directory: str, config: str, row: str, tmp_path: Path) -> None:
    writable = golden.writable_copy(directory, config, tmp_path)
    out = tmp_path / "layer"
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path != out}
    one = succeed("commit", writable, "-o", out)
    assert succeed("commit", writable, "-o", out) == one
    assert before.keys() <= {path.name for path in tmp_path.iterdir()}
    lowers = [tmp_path / lower["file"] for lower in json.loads(writable.read_text())["lowers"]]
    dump([*lowers, out], tmp_path / "raw")
    if directory == "lsmt":
        raw = (tmp_path / "raw").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == golden.row_of(directory, row)["raw_sha256"]
        return
    # What the file system calls free may differ. The rest is for others to judge: e2fsck finds the
    # same little mistakes that the reference makes, and no more; all files are the same.
    dump([writable], tmp_path / "whole")
    judged = [ext4_images.judge(tmp_path / name) for name in ("raw", "whole")]
    assert judged[0] == judged[1]
    trees = [ext4_images.tree(tmp_path / name) for name in ("raw", "whole")]
    assert trees[0] == trees[1]
    copies = [ext4_images.copy_tree(tmp_path / name) for name in ("raw", "whole")]
    subprocess.run(["diff", "-r", "--no-dereference", *copies], check=True)


def test_a_config_is_no_image(tmp_path: Path) -> None:
    writable = golden.writable_copy("lsmt", "w.config.json", tmp_path)
    line = fail(UsageError.exit_code, "commit", writable, "--to", f"oci:{tmp_path / 'new'}:v1")
    assert "not made over an image" in line
    plain = golden.tree() / "lsmt/e.config.json"
    assert "names no upper" in fail(UsageError.exit_code, "commit", plain, "-o", tmp_path / "x")


# --- failures


def test_wrong_use(upper: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert "-o FILE" in fail(UsageError.exit_code, "commit", upper)
    both = ("-o", out, "--to", "oci:x:y")
    assert "-o FILE" in fail(UsageError.exit_code, "commit", upper, *both)
    fail(NotFoundError.exit_code, "commit", tmp_path / "nothing", "-o", out)
    fail(NotFoundError.exit_code, "commit", tmp_path, "-o", out)
    with exclusive(upper):
        line = fail(BusyError.exit_code, "commit", upper, "-o", out)
        assert "in use" in line
    assert not out.exists()


def test_an_image_that_is_gone(upper: Path, tmp_path: Path) -> None:
    (tmp_path / "layout").rename(tmp_path / "elsewhere")
    done = run("commit", upper, "-o", tmp_path / "layer")
    assert done.returncode == 0
    assert "the image below cannot be read" in done.stderr
    line = fail(NotFoundError.exit_code, "commit", upper, "--to", f"oci:{tmp_path / 'new'}:v2")
    assert "layout" in line
    assert not (tmp_path / "new").exists()


def test_a_damaged_base_gets_no_tag(upper: Path, tmp_path: Path) -> None:
    bottom = golden_image.layers()[0]
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    path = blobs / oci.digest_of(bottom).removeprefix("sha256:")
    content = bytearray(bottom)
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    target = tmp_path / "new"
    fail(FormatError.exit_code, "commit", upper, "--to", f"oci:{target}:v2")
    fail(NotFoundError.exit_code, "inspect", f"oci:{target}:v2")
    path.write_bytes(bottom)
    succeed("commit", upper, "--to", f"oci:{target}:v2")
    assert not [name for name in os.listdir(target / "blobs" / "sha256") if name.startswith(".")]


def test_a_destination_of_another_digest(upper: Path, tmp_path: Path) -> None:
    target = f"oci:{tmp_path / 'new'}@sha256:{'0' * 64}"
    fail(UsageError.exit_code, "commit", upper, "--to", target)
    assert not (tmp_path / "new").exists()


def test_archives_are_no_destination(upper: Path, tmp_path: Path) -> None:
    done = run("commit", upper, "--to", f"docker-archive:{tmp_path / 'x'}")
    assert done.returncode in (UsageError.exit_code, UnsupportedError.exit_code)
