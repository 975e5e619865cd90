"""One image from a real registry through both modes, and what mode tcmu survives. In the guest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import golden_image, oci
from support.mounting import poll_until
from support.registry import RealRegistry
from support.tree import read_tree

from hybrid.block.configfs import list_targets

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def registry() -> Iterator[RealRegistry]:
    with RealRegistry() as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "hybrid.json"
    cache = {"cacheType": "file", "cacheDir": str(tmp_path / "cache"), "cacheSizeGB": 1}
    config.write_text(json.dumps({"cacheConfig": cache}))
    monkeypatch.setenv("HYBRID_CONFIG", str(config))
    monkeypatch.setenv("HYBRID_STATE_DIR", str(tmp_path / "state"))


def _hybrid(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hybrid", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _move_tag(registry: RealRegistry) -> None:
    """The tag of the golden image names its lowest layer alone from now on."""
    blobs = golden_image.layers()[:1]
    config = oci.image_config(blobs)
    registry.push_blob(golden_image.REPOSITORY, config)
    manifest = oci.manifest_of([oci.native_layer(blobs[0])], config)
    registry.push_manifest(golden_image.REPOSITORY, "v1", manifest, oci.OCI_MANIFEST)


@pytest.mark.usefixtures("environment")
def test_both_modes_show_one_tree_and_a_killed_server_is_replaced(
    registry: RealRegistry, tmp_path: Path
) -> None:
    image = golden_image.push(registry)
    places = {mode: tmp_path / mode for mode in ("tcmu", "fuse")}
    mounts = {}
    for mode, place in places.items():
        place.mkdir()
        mounts[mode] = json.loads(_hybrid("mount", "--json", "--mode", mode, image, place))
        assert mounts[mode]["mode"] == mode
    assert read_tree(places["tcmu"]) == (tree := read_tree(places["fuse"]))
    stats = {mount["mode"]: mount["stats"] for mount in json.loads(_hybrid("list", "--json"))}
    assert 0 < stats["tcmu"]["bytes_fetched"] < stats["tcmu"]["bytes_total"]

    # The tag moves, the server dies, and nothing is in the page cache: what waits is answered
    # from the image that was mounted.
    os.kill(mounts["tcmu"]["pid"], signal.SIGKILL)
    _move_tag(registry)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with subprocess.Popen(["find", places["tcmu"], "-type", "f", "-exec", "cat", "{}", "+"],
                          stdout=subprocess.DEVNULL) as reader:  # fmt: skip
        resumed = json.loads(_hybrid("resume", "--json", mounts["tcmu"]["id"]))
        assert reader.wait(120) == 0
    assert resumed["pid"] != mounts["tcmu"]["pid"]
    assert resumed["device"] == mounts["tcmu"]["device"]
    assert read_tree(places["tcmu"]) == tree

    for place in places.values():
        _hybrid("umount", place)
    poll_until(lambda: not list((tmp_path / "state").iterdir()), "the servers' end")
    assert list_targets() == []
