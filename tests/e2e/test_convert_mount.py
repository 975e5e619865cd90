"""``hybrid convert --via mount`` as root runs it: the kernel's file systems on an attached disk.

The trees that come of it are compared in test_convert.py. Each command is a process of its own: it
forks one that attaches the disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import oci
from support.archives import archive, member
from support.commands import fail, spawn, succeed
from support.ext4_disks import check, needs_root
from support.kernel_trees import shown
from support.mounting import poll_until
from support.plain_images import PlainImage, rich_layers
from support.registry import RealRegistry
from support.stopping_registry import StoppingRegistry
from support.umoci import unpacked

from hybrid.errors import (
    EXIT_INTERRUPTED,
    FormatError,
    HybridError,
    PermissionNeededError,
    StorageFullError,
    SystemSupportError,
    UnsupportedError,
    UsageError,
)
from hybrid.mount.mountinfo import read_mountinfo

FILE_SYSTEMS = ["ext4", "xfs", "btrfs"]
SIZE = 400 << 20
MUCH = Random(7).randbytes(1 << 20) * 25
ADDED = archive(
    member(b"etc/motd", b"hello from a fourth layer\n", mtime=51),
    member(b"usr/bin/.wh.tool2"),
    member(b"cache/", mode=0o755, mtime=52),
    member(b"cache/.wh..wh..opq"),
)


class Bench:
    """Commands with a state and temporary directory of their own, in which nothing may stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        settings = directory / "hybrid.json"
        place = {"cacheType": "file", "cacheDir": str(directory / "cache")}
        settings.write_text(json.dumps({"cacheConfig": place}))
        self.environment = os.environ | {
            "HYBRID_CONFIG": str(settings),
            "HYBRID_STATE_DIR": str(directory / "state"),
            "TMPDIR": str(self.scratch),
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return spawn(*arguments, env=self.environment)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def convert(self, fs: str, *arguments: object) -> Any:
        options = ("--json", "--via", "mount", "--fs", fs, "--size", SIZE)
        code, out, err = self.run("convert", *options, *arguments)
        assert (code, err) == (0, "")
        return json.loads(out)

    def refuse(self, kind: type[HybridError], fs: str, *arguments: object) -> str:
        """The one line that the command says."""
        options = ("--via", "mount", "--fs", fs, "--size", SIZE)
        code, _, err = self.run("convert", *options, *arguments)
        assert (code, err.count("\n")) == (kind.exit_code, 1), err
        return err

    def mounted_tree(self, image: str) -> Any:
        point = self.directory / "mnt"
        point.mkdir(exist_ok=True)
        assert self.run("mount", image, point)[0] == 0
        try:
            return shown(point)
        finally:
            assert self.run("umount", point)[0] == 0

    def records(self) -> list[dict[str, Any]]:
        """What is known of the disks that are attached now."""
        paths = self.directory.glob("state/*/state.json")
        return [json.loads(path.read_text()) for path in paths]

    def is_clean(self) -> bool:
        """Whether there is no disk, no mount and no file of a conversion."""
        state = self.directory / "state"
        mounts = [entry for entry in read_mountinfo() if str(self.directory) in entry.mount_point]
        loops = subprocess.run(["losetup", "-n", "-O", "BACK-FILE"], capture_output=True, text=True,
                               check=True).stdout  # fmt: skip
        left = [path for path in state.glob("*") if path.is_dir()]
        return not (mounts or left or str(self.directory) in loops or [*self.scratch.iterdir()])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    assert made.is_clean()


def layout(path: Path, layers: list[bytes]) -> str:
    PlainImage(layers, compression="none").put(oci.LayoutBuilder(path), "v1")
    return f"oci:{path}:v1"


def layers_of(result: dict[str, Any], field: str = "digest") -> list[str]:
    (image,) = result["images"]
    return [layer[field] for layer in image["layers"]]


# -- What comes out ------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_every_state_of_the_disk_is_sound(bench: Bench, tmp_path: Path, fs: str) -> None:
    """As the file system's own checker sees it, and uuids lead from layer to layer."""
    target = tmp_path / "target"
    result = bench.convert(fs, layout(tmp_path / "source", rich_layers()), f"oci:{target}:v1")
    blobs = [target / "blobs/sha256" / digest[7:] for digest in layers_of(result)]
    assert len(blobs) == 4
    disk = tmp_path / "disk"
    checkers = {"xfs": ["xfs_repair", "-n", "-f", disk], "btrfs": ["btrfs", "check", disk]}
    for count in range(1, 5):
        succeed("layer", "dump", *blobs[:count], "-o", disk)
        if fs == "ext4":
            check(disk)
        else:
            subprocess.run(checkers[fs], check=True, capture_output=True)
        disk.unlink()
    described = json.loads(succeed("inspect", "--json", f"oci:{target}:v1"))
    uuids = [layer["uuid"] for layer in described["layers"]]
    assert len(set(uuids)) == 4
    assert [layer["parent_uuid"] or "" for layer in described["layers"]] == ["", *uuids[:3]]
    assert {layer["fs_type"] for layer in described["layers"]} == {fs}
    # Little changed, little stored.
    assert blobs[3].stat().st_size < 256 << 10


@needs_root
def test_the_empty_ext4_is_that_of_all_images(bench: Bench, tmp_path: Path) -> None:
    source = layout(tmp_path / "source", rich_layers())
    by_kernel = bench.convert("ext4", source, f"oci:{tmp_path}/target:kernel")
    code, out, _ = bench.run(
        "convert", "--json", "--size", SIZE, source, f"oci:{tmp_path}/target:own"
    )
    assert code == 0
    own = json.loads(out)
    assert layers_of(own)[0] == layers_of(by_kernel)[0]
    assert layers_of(own, "how") == ["reused", "converted", "converted", "converted"]


@needs_root
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
@pytest.mark.parametrize("place", ["registry", "layout"])
def test_layers_are_reused_and_added_to(bench: Bench, tmp_path: Path, place: str, fs: str) -> None:
    """The new layer lies over old ones that are read from the destination."""
    first = layout(tmp_path / "first", rich_layers())
    second = layout(tmp_path / "second", [*rich_layers(), ADDED])
    with RealRegistry() as registry:
        base = f"{registry.host}/app" if place == "registry" else f"oci:{tmp_path}/target"
        converted = bench.convert(fs, first, f"{base}:v1")
        again = bench.convert(fs, first, f"{base}:v1")
        assert again["layers"] == {"converted": 0, "reused": 4}
        assert again["digest"] == converted["digest"]
        more = bench.convert(fs, second, f"{base}:v2")
        assert layers_of(more, "how") == ["reused"] * 4 + ["converted"]
        assert layers_of(more)[:4] == layers_of(converted)
        found = bench.mounted_tree(f"{base}:v2")
    expected = unpacked(tmp_path, [*rich_layers(), ADDED])
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert found[path] == row, path


@needs_root
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
@pytest.mark.parametrize("cache", ["cache", "/proc/nowhere"])
def test_several_images_in_one_run(bench: Bench, tmp_path: Path, cache: str, fs: str) -> None:
    """Each has a disk of its own, over layers of those before it where they are remembered."""
    place = {"cacheType": "file", "cacheDir": str(tmp_path / cache)}
    (tmp_path / "hybrid.json").write_text(json.dumps({"cacheConfig": place}))
    alone = archive(member(b"alone", b"1", mtime=61))
    stacks = {"amd64": rich_layers(), "arm64": [rich_layers()[0], ADDED], "s390x": [alone]}
    source, target = oci.LayoutBuilder(tmp_path / "source"), f"oci:{tmp_path}/target:v1"
    images = [PlainImage(layers, "none", architecture=name) for name, layers in stacks.items()]
    entries = [image.entry(source) for image in images]
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
    source.add(oci.to_json(index), "v1")
    options = ("--json", "--via", "mount", "--fs", fs, "--size", SIZE, "--platform", "all")
    code, out, err = bench.run("convert", *options, f"oci:{tmp_path}/source:v1", target)
    assert code == 0, err
    for image, layers in zip(json.loads(out)["images"], stacks.values(), strict=True):
        found = bench.mounted_tree(f"oci:{tmp_path}/target@{image['digest']}")
        (directory := tmp_path / image["digest"][7:]).mkdir()
        expected = unpacked(directory, layers)
        assert set(found) == set(expected)
        assert found[b""]["mtime"] == (0 if layers == [alone] else 10**9)
        for path, row in expected.items():
            assert path == b"" or found[path] == row, path


@needs_root
def test_a_relative_place_for_temporary_files(bench: Bench, tmp_path: Path) -> None:
    """Servers have another working directory than the command."""
    bench.environment["TMPDIR"] = os.path.relpath(bench.scratch)
    bench.convert("xfs", layout(tmp_path / "source", rich_layers()), f"oci:{tmp_path}/target:v1")


@pytest.mark.guest
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_through_a_scsi_disk(bench: Bench, tmp_path: Path, fs: str) -> None:
    """In mode tcmu the disk is told what is not in use: zeros hide what was removed."""
    layers = [archive(member(b"junk", MUCH[: 3 << 20]), member(b"kept", b"kept")),
              archive(member(b".wh.junk"))]  # fmt: skip
    options = ("--via", "mount", "--fs", fs, "--size", SIZE)
    source, target = layout(tmp_path / "source", layers), f"oci:{tmp_path}/target:v1"
    code, out, err = bench.run("-v", "convert", "--json", *options, source, target)
    assert code == 0, err
    assert "mode tcmu" in err
    top = tmp_path / "target/blobs/sha256" / layers_of(json.loads(out))[-1][7:]
    assert top.stat().st_size < 1 << 20
    info = json.loads(succeed("layer", "info", "--segments", "--json", top))
    # Start, count, place, whether they are zeros, layer: in sectors.
    zeros = sum(row[1] for row in info["merged"]["index"] if row[3])
    assert zeros * 512 == 3 << 20
    found = bench.mounted_tree(target)
    expected = unpacked(tmp_path, layers)
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert path == b"" or found[path] == row, path


# -- What cannot be ------------------------------------------------------------------------------


def test_file_systems_and_ways() -> None:
    code = UsageError.exit_code
    assert "--via mount" in fail(code, "convert", "--fs", "xfs", "oci:a:b", "oci:c:d")
    line = fail(code, "convert", "--via", "mount", "--fs", "erofs", "oci:a:b", "oci:c:d")
    assert "ext4, xfs, btrfs" in line


@needs_root
def test_an_ordinary_user(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hybrid", "convert", "--via", "mount", "oci:a:b", "oci:c:d"]
    done = subprocess.run(command, capture_output=True, text=True, user=65534, check=False)
    assert done.returncode == PermissionNeededError.exit_code
    assert done.stderr.count("\n") == 1
    assert "needs root" in done.stderr


@needs_root
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_sizes_that_cannot_be(bench: Bench, tmp_path: Path, fs: str) -> None:
    source = layout(tmp_path / "source", rich_layers())
    options = ("--via", "mount", "--fs", fs, "--size", "4M")
    code, _, err = bench.run("convert", *options, source, f"oci:{tmp_path}/target:v1")
    assert (code, err.count("\n")) == (UsageError.exit_code, 1), err
    assert not (tmp_path / "target/index.json").exists()


@needs_root
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_bad_layers(bench: Bench, tmp_path: Path, fs: str) -> None:
    """Nothing has the name, and nothing is left of the disk."""
    target = tmp_path / "target"
    layers = rich_layers()
    for number, (kind, match, bad) in enumerate([
        (FormatError, "truncated", layers[1][:-3000]),
        (FormatError, "leads out of the image", archive(member(b"../../x"))),
        (UnsupportedError, "n: ", archive(member(b"n" * 300))),
        (StorageFullError, "--size", archive(*(member(b"%d" % i, MUCH) for i in range(20)))),
    ]):  # fmt: skip
        source = layout(tmp_path / f"source{number}", [layers[0], bad])
        assert match in bench.refuse(kind, fs, source, f"oci:{target}:v1")
        assert not (target / "index.json").exists()
        assert bench.is_clean()


@needs_root
def test_no_room_for_the_disk(bench: Bench, tmp_path: Path) -> None:
    """What the kernel calls an input/output error is told as what it is."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", bench.scratch], check=True)
    try:
        big = archive(member(b"big", Random(1).randbytes(60 << 20)))
        for fs in FILE_SYSTEMS:
            source = layout(tmp_path / f"source-{fs}", [big])
            line = bench.refuse(StorageFullError, fs, source, f"oci:{tmp_path}/target:v1")
            assert "TMPDIR" in line
        assert not list(bench.scratch.iterdir())
    finally:
        subprocess.run(["umount", bench.scratch], check=True)


@needs_root
def test_the_server_of_the_disk_dies(bench: Bench, tmp_path: Path) -> None:
    with StoppingRegistry() as registry:
        assert isinstance(registry, StoppingRegistry)
        name = f"{registry.host}/app:v1"
        process = bench.start("convert", "--via", "mount", name, f"oci:{tmp_path}/target:v1")
        try:
            assert registry.half_sent.wait(60)
            poll_until(lambda: any(row["ready"] for row in bench.records()), "a disk is attached")
            (record,) = bench.records()
            os.kill(record["pid"], signal.SIGKILL)
        finally:
            registry.end.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode in (SystemSupportError.exit_code, 6), err
    assert err.count("\n") == 1


# -- Interruptions -------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_continued(bench: Bench, tmp_path: Path, number: signal.Signals) -> None:
    """Nothing has the name, nothing stays, and the next run goes on."""
    target = tmp_path / "target"
    arguments = ["--via", "mount", "--fs", "xfs", "--size", SIZE]
    with StoppingRegistry() as registry:
        assert isinstance(registry, StoppingRegistry)
        arguments += [f"{registry.host}/app:v1", f"oci:{target}:v1"]
        process = bench.start("-v", "convert", *arguments)
        errors: list[str] = []
        try:
            assert registry.half_sent.wait(30)
            assert process.stderr is not None
            # Two layers are finished: the file system, and that below the one that hangs.
            while sum("converted" in line for line in errors) < 2:
                errors.append(process.stderr.readline())
                assert errors[-1], errors
            process.send_signal(number)
            process.communicate(timeout=15)
        finally:
            registry.end.set()
            process.kill()
            process.wait()
        if number == signal.SIGINT:
            assert process.returncode == EXIT_INTERRUPTED
            assert bench.is_clean()
        poll_until(bench.is_clean, "everything is taken away", 30)
        assert not (target / "index.json").exists()
        code, out, err = bench.run("convert", "--json", *arguments)
        assert code == 0, err
    assert layers_of(json.loads(out), "how") == ["reused", "reused", "converted"]
