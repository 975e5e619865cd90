"""``hybrid convert`` as a user runs it. umoci says what the tree is, e2fsck and skopeo judge."""

from __future__ import annotations

import base64
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import oci
from support.archives import archive, member
from support.commands import fail, run, spawn, succeed, succeed_json
from support.ext4_disks import check, needs_root
from support.kernel_trees import shown
from support.plain_images import PlainImage, rich_layers
from support.registry import RealRegistry
from support.stopping_registry import BIG, StoppingRegistry
from support.umoci import make_image, unpacked_image

from hybrid.errors import (
    EXIT_INTERRUPTED,
    AuthError,
    FormatError,
    NetworkError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
    UsageError,
)

SIZE = ("--size", "1G")


@pytest.fixture(scope="module")
def server() -> Iterator[RealRegistry]:
    with RealRegistry() as registry:
        yield registry


def tool(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


def layout(path: Path, image: PlainImage | None = None, tag: str = "v1") -> str:
    """A layout with one plain image; its name."""
    builder = oci.LayoutBuilder(path)
    (image or PlainImage(rich_layers())).put(builder, tag)
    return f"oci:{path}:{tag}"


def copy_to(source: str, target: str) -> None:
    tool("skopeo", "copy", "-q", "--dest-tls-verify=false", source, f"docker://{target}")


def layers_of(result: dict[str, Any], field: str = "digest") -> list[str]:
    (image,) = result["images"]
    return [layer[field] for layer in image["layers"]]


def convert(*arguments: object) -> Any:
    return succeed_json("convert", *SIZE, *arguments)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test alone, for root too."""
    settings = tmp_path / "hybrid.json"
    place = {"cacheType": "file", "cacheDir": str(tmp_path / "cache")}
    settings.write_text(json.dumps({"cacheConfig": place}))
    monkeypatch.setenv("HYBRID_CONFIG", str(settings))


def new_memory(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


# -- What comes out ------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("via", "fs"),
    [("library", "ext4"), ("library", "erofs"), ("mount", "ext4"), ("mount", "xfs"),
     ("mount", "btrfs")],
)  # fmt: skip
def test_the_tree_of_the_result(server: RealRegistry, tmp_path: Path, via: str, fs: str) -> None:
    """From one repository to another; mounted, it is what umoci unpacks."""
    image = make_image(tmp_path / "umoci", "v1", rich_layers())
    name = f"{server.host}/tree/{via}/{fs}"
    copy_to(f"oci:{image}", f"{name}:v1")
    options = ("--via", via, "--fs", fs)
    reference = succeed("convert", *options, f"{name}:v1", f"{name}/converted:v1").strip()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environment = os.environ | {"HYBRID_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "hybrid"]
    subprocess.run([*command, "mount", reference, mountpoint], check=True, env=environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        found = shown(mountpoint)
    finally:
        subprocess.run([*command, "umount", mountpoint], check=True, env=environment)
    expected = unpacked_image(image, tmp_path / "bundle")
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert found[path] == row, path
    described = succeed_json("inspect", reference)
    assert described["virtual_size"] == 64 << 30
    assert len(described["layers"]) == (1 if fs == "erofs" else 4)


def test_every_state_of_the_disk_is_sound(tmp_path: Path) -> None:
    result = convert(layout(tmp_path / "source"), f"oci:{tmp_path}/target:v1")
    blobs = [tmp_path / "target/blobs/sha256" / digest[7:] for digest in layers_of(result)]
    assert len(blobs) == 4
    for count in range(1, 5):
        succeed("layer", "dump", *blobs[:count], "-o", tmp_path / "disk")
        check(tmp_path / "disk")
    described = succeed_json("inspect", f"oci:{tmp_path}/target:v1")
    uuids = [layer["uuid"] for layer in described["layers"]]
    assert [layer["parent_uuid"] or "" for layer in described["layers"]] == ["", *uuids[:3]]
    # Little changed, little stored.
    assert blobs[3].stat().st_size < 64 << 10


@pytest.mark.parametrize("docker", [False, True])
def test_skopeo_takes_the_result(server: RealRegistry, tmp_path: Path, docker: bool) -> None:
    source = layout(tmp_path / "source", PlainImage(rich_layers(), docker=docker))
    name = f"{server.host}/skopeo/{'docker' if docker else 'oci'}"
    reference = succeed("convert", *SIZE, source, f"{name}:v1").strip()
    digest = reference.partition("@")[2]
    assert reference == f"{name}:v1@{digest}"
    seen = json.loads(tool("skopeo", "inspect", "--tls-verify=false", f"docker://{name}:v1"))
    assert (seen["Digest"], len(seen["Layers"])) == (digest, 4)
    config = json.loads(
        tool("skopeo", "inspect", "--config", "--tls-verify=false", f"docker://{name}:v1")
    )
    assert config["rootfs"]["diff_ids"] == seen["Layers"]
    assert sum(not entry.get("empty_layer") for entry in config["history"]) == 4
    assert config["config"]["Env"] == ["A=\u00fc"]
    tool("skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false",
         "--dest-tls-verify=false", f"docker://{name}:v1", f"docker://{name}/copy:v1")  # fmt: skip
    # It checks that history and layers fit together when it makes another kind of manifest.
    kind = "oci" if docker else "v2s2"
    tool("skopeo", "copy", "-q", "--format", kind, "--src-tls-verify=false",
         f"docker://{name}:v1", f"dir:{tmp_path}/other")  # fmt: skip


def test_the_same_source_gives_the_same_digests(server: RealRegistry, tmp_path: Path) -> None:
    """Whatever the number of threads, wherever it comes from, however it was compressed."""
    found = []
    for threads, compression in ((1, "gzip"), (2, "zstd"), (5, "none"), (2, "gzip")):
        new_memory(tmp_path)
        number = len(found)
        image = PlainImage(rich_layers(), compression=compression)
        source = layout(tmp_path / f"source{number}", image)
        result = convert("--threads", threads, source, f"oci:{tmp_path}/target{number}:v1")
        assert result["layers"] == {"converted": 4, "reused": 0}
        found.append(result)
    assert len({tuple(layers_of(result)) for result in found}) == 1
    assert found[0]["digest"] == found[3]["digest"]
    saved = tmp_path / "saved.tar"
    tool("skopeo", "copy", "-q", f"oci:{tmp_path}/source0:v1", f"docker-archive:{saved}:app:v1")
    new_memory(tmp_path)
    result = convert(f"docker-archive:{saved}", f"{server.host}/same/archive:v1")
    assert layers_of(result) == layers_of(found[0])


@pytest.mark.parametrize("options", [("zstd", "16k"), ("lz4", "32k"), ("none", "4k")])
def test_options_of_compression(tmp_path: Path, options: tuple[str, str]) -> None:
    source, target = layout(tmp_path / "source"), f"oci:{tmp_path}/target:v1"
    result = convert("--compress", options[0], "--block-size", options[1], source, target)
    plain = convert(source, f"oci:{tmp_path}/target:plain")
    assert not set(layers_of(result)) & set(layers_of(plain))
    one, other = (succeed_json("inspect", f"oci:{tmp_path}/target:{x}") for x in ("v1", "plain"))
    assert {layer["compression"] for layer in one["layers"]} == {options[0]}
    assert [x["uuid"] for x in one["layers"]] == [x["uuid"] for x in other["layers"]]
    assert one["segments"] == other["segments"]


# -- Reuse ---------------------------------------------------------------------------------------


def test_the_second_run_has_nothing_to_do(server: RealRegistry, tmp_path: Path) -> None:
    name = f"{server.host}/reuse/app"
    copy_to(layout(tmp_path / "source"), f"{name}:v1")
    first = convert(f"{name}:v1", f"{name}/one:v1")
    assert first["layers"] == {"converted": 4, "reused": 0}
    assert set(layers_of(first, "stored")) == {"written"}
    server.forget_requests()
    second = convert(f"{name}:v1", f"{name}/one:v2")
    assert second["layers"] == {"converted": 0, "reused": 4}
    assert second["digest"] == first["digest"]
    assert set(layers_of(second, "stored")) == {"present"}
    # Nothing but the config of the source was fetched.
    assert len(server.requests("GET", "/blobs/")) == 1
    # Another repository of this registry takes the layers from the first.
    third = convert(f"{name}:v1", f"{name}/two:v1")
    assert set(layers_of(third, "stored")) == {"mounted"}
    assert len(server.requests("GET", "/blobs/")) == 2
    # And another one, where nothing is known, still does not get what it has already.
    new_memory(tmp_path)
    fourth = convert(f"{name}:v1", f"{name}/two:v2")
    assert fourth["layers"] == {"converted": 4, "reused": 0}
    assert set(layers_of(fourth, "stored")) == {"present"}
    assert run("convert", *SIZE, "-v", f"{name}:v1", f"{name}/two:v3").stderr.endswith(
        "all 4 layers were reused\n"
    )


@pytest.mark.parametrize("place", ["registry", "layout"])
def test_layers_over_reused_ones(server: RealRegistry, tmp_path: Path, place: str) -> None:
    """They come out the same as if all had been made at once; what is below is read lazily."""
    layers = rich_layers()
    short = layout(tmp_path / "short", PlainImage(layers[:2]))
    name = f"{server.host}/over/{place}"
    copy_to(layout(tmp_path / "long", PlainImage(layers)), f"{name}:long")
    target = f"{name}/target" if place == "registry" else f"oci:{tmp_path}/target"
    convert(short, f"{target}:short")
    server.forget_requests()
    result = convert(f"{name}:long", f"{target}:long")
    assert layers_of(result, "how") == ["reused"] * 3 + ["converted"]
    sources = [oci.digest_of(blob) for blob in PlainImage(layers).blobs()]
    assert not any(server.requests("GET", digest) for digest in sources[:2])
    new_memory(tmp_path)
    whole = convert(f"{name}:long", f"oci:{tmp_path}/whole:v1")
    assert layers_of(whole) == layers_of(result)
    assert whole["digest"] == result["digest"]


def test_what_was_removed_is_made_again(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "source"), f"oci:{tmp_path}/target:v1"
    first = convert(source, target)
    (tmp_path / "target/blobs/sha256" / layers_of(first)[2][7:]).unlink()
    second = convert(source, target)
    assert layers_of(second, "how") == ["reused", "reused", "converted", "converted"]
    assert second["digest"] == first["digest"]


# -- Indexes -------------------------------------------------------------------------------------


def test_a_reused_blob_that_was_changed_is_made_again(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "plain"), tmp_path / "converted"
    first = convert(source, f"oci:{target}:v1", "--compress", "none")
    blob = target / "blobs" / layers_of(first)[1].replace(":", "/")
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:9000] + b"changed" + content[9007:])
    second = convert(source, f"oci:{target}:v2", "--compress", "none")
    assert layers_of(second) == layers_of(first)
    assert blob.read_bytes() == content


def put_index(path: Path) -> tuple[str, list[oci.Json]]:
    """Images of three platforms that share a layer, and an attestation; its name, and all four."""
    builder = oci.LayoutBuilder(path)
    entries = []
    for architecture in ("amd64", "arm64", "s390x"):
        own = archive(member(b"architecture", architecture.encode()))
        entries.append(
            PlainImage([rich_layers()[0], own], architecture=architecture).entry(builder)
        )
    about = {"vnd.docker.reference.type": "attestation-manifest",
             "vnd.docker.reference.digest": entries[0]["digest"]}  # fmt: skip
    attestation = PlainImage([b"{}"], layer_type="application/vnd.in-toto+json")
    entries.append(
        attestation.entry(builder)
        | {"annotations": about, "platform": {"os": "unknown", "architecture": "unknown"}}
    )
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
    builder.add(oci.to_json(index), "multi")
    return f"oci:{path}:multi", entries


def test_all_platforms_of_an_index(tmp_path: Path) -> None:
    source, entries = put_index(tmp_path / "source")
    target = f"oci:{tmp_path}/target:multi"
    done = run("convert", *SIZE, "--platform", "all", "--json", source, target)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "1 entries" in done.stderr
    result = json.loads(done.stdout)
    assert result["dropped"] == [entries[3]["digest"]]
    assert [image["platform"] for image in result["images"]] == [
        "linux/amd64", "linux/arm64", "linux/s390x",
    ]  # fmt: skip
    # Their common layer was converted once.
    assert result["layers"] == {"converted": 5, "reused": 4}
    raw = json.loads(tool("skopeo", "inspect", "--raw", target))
    assert [entry["platform"] for entry in raw["manifests"]] == [
        entry["platform"] for entry in entries[:3]
    ]
    tool("skopeo", "copy", "-q", "--all", "--preserve-digests", target, f"oci:{tmp_path}/copy:v1")
    one = succeed_json("inspect", "--platform", "linux/arm64", target)
    assert len(one["layers"]) == 3


def test_some_platforms_of_an_index(tmp_path: Path) -> None:
    source, _ = put_index(tmp_path / "source")
    target = f"oci:{tmp_path}/target:v1"
    result = convert("--platform", "linux/arm64", source, target)
    (image,) = result["images"]
    assert (image["platform"], image["digest"]) == ("linux/arm64", result["digest"])
    both = convert("--platform", "linux/arm64", "--platform", "linux/s390x", source, target)
    assert [image["platform"] for image in both["images"]] == ["linux/arm64", "linux/s390x"]
    assert both["images"][0]["digest"] == result["digest"]
    line = fail(NotFoundError.exit_code, "convert", "--platform", "linux/mips", source, target)
    assert "linux/s390x" in line


# -- What goes wrong -----------------------------------------------------------------------------


def refuse(code: int, source: str, target: Path, *options: object) -> str:
    """One line, and nothing under the name."""
    line = fail(code, "convert", *SIZE, *options, source, f"oci:{target}:v1")
    assert not (target / "index.json").exists()
    return line


def test_damaged_layers(tmp_path: Path) -> None:
    code = FormatError.exit_code
    target = tmp_path / "target"
    image = PlainImage(rich_layers())
    blob = image.blobs()[1]
    middle = len(blob) // 2
    for number, damaged in enumerate(
        (
            blob[:middle],
            blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :],
            blob + b"more",
        )
    ):
        source = layout(tmp_path / f"source{number}", image)
        builder_path = tmp_path / f"source{number}/blobs/sha256" / oci.digest_of(blob)[7:]
        builder_path.write_bytes(damaged)
        assert oci.digest_of(blob)[7:] in refuse(code, source, target)
    # Nothing that is in the way of a good one has stayed.
    result = convert(layout(tmp_path / "good", image), f"oci:{target}:v1")
    assert len(layers_of(result)) == 4


def test_layers_that_are_not_what_their_image_says(tmp_path: Path) -> None:
    code, target = FormatError.exit_code, tmp_path / "target"
    layers = rich_layers()
    ids = [oci.digest_of(data) for data in layers]
    wrong = PlainImage(layers, diff_ids=[ids[0], ids[2], ids[1]])
    line = refuse(code, layout(tmp_path / "wrong", wrong), target)
    assert "diff_id" in line
    # Also when the true layer was converted before.
    convert(layout(tmp_path / "right", PlainImage(layers)), f"oci:{tmp_path}/other:v1")
    assert "diff_id" in refuse(code, layout(tmp_path / "again", wrong), target)
    short = PlainImage([layers[0][:-3000]])
    assert "truncated" in refuse(code, layout(tmp_path / "short", short), target)
    garbage = PlainImage([b"no archive at all" * 1000])
    refuse(code, layout(tmp_path / "garbage", garbage), target, "--fs", "erofs")


@pytest.mark.parametrize("fs", ["ext4", "erofs"])
def test_an_image_larger_than_the_disk(tmp_path: Path, fs: str) -> None:
    big = archive(
        *(member(b"%d" % number, Random(number).randbytes(1 << 20)) for number in range(9))
    )
    source = layout(tmp_path / "source", PlainImage([big]))
    target = tmp_path / "target"
    line = refuse(StorageFullError.exit_code, source, target, "--size", "8M", "--fs", fs)
    assert "--size" in line
    refuse(UsageError.exit_code, source, target, "--size", "1M")
    refuse(UsageError.exit_code, source, target, "--size", "lots")


def test_what_is_no_plain_image(server: RealRegistry, tmp_path: Path) -> None:
    code, target = UnsupportedError.exit_code, tmp_path / "target"
    convert(layout(tmp_path / "plain"), f"oci:{tmp_path}/converted:v1")
    line = refuse(code, f"oci:{tmp_path}/converted:v1", target)
    assert "already" in line
    assert "hybrid copy" in line
    for number, image in enumerate(
        (
            PlainImage([]),
            PlainImage([b"x"], layer_type=oci.OCI_LAYER + "+gzip+encrypted"),
            PlainImage([b"BZh91AY" * 100], compression="none"),
        )
    ):
        refuse(code, layout(tmp_path / f"source{number}", image), target)
    missing = f"{server.host}/no/such:v1"
    assert "404" in refuse(NotFoundError.exit_code, missing, target)
    assert "can only be read" in fail(UsageError.exit_code, "convert", missing, "docker-archive:x")


def test_a_registry_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = layout(tmp_path / "source")
    with RealRegistry(auth="htpasswd") as private:
        name = f"{private.host}/private/app:v1"
        assert "no permission to push" in fail(AuthError.exit_code, "convert", *SIZE, source, name)
        docker = tmp_path / "docker"
        docker.mkdir()
        auth = base64.b64encode(b"alice:wonder:land").decode()
        (docker / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": auth}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(docker))
        assert convert(source, name)["layers"]["converted"] == 4


def test_a_registry_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blobs of the source come from a registry that is down."""
    settings = json.loads(Path(os.environ["HYBRID_CONFIG"]).read_text())
    settings["registry"] = {"retryBudget": 0.2, "connectTimeout": 0.2}
    Path(os.environ["HYBRID_CONFIG"]).write_text(json.dumps(settings))
    with RealRegistry() as source, RealRegistry() as target:
        copy_to(layout(tmp_path / "source"), f"{source.host}/app:v1")
        layer = oci.digest_of(PlainImage(rich_layers()).blobs()[1])
        source.blob_path(layer).unlink()
        name = f"{target.host}/app:v1"
        fail(NotFoundError.exit_code, "convert", *SIZE, f"{source.host}/app:v1", name)
        target.stop()
        fail(NetworkError.exit_code, "convert", *SIZE, layout(tmp_path / "again"), name)
        target.start()
        fail(NotFoundError.exit_code, "inspect", name)


@needs_root
@pytest.mark.parametrize("fs", ["ext4", "erofs"])
def test_no_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs: str
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small)
    try:
        monkeypatch.setenv("TMPDIR", str(small))
        big = archive(member(b"big", Random(1).randbytes(8 << 20)))
        source = layout(tmp_path / "source", PlainImage([big]))
        line = refuse(StorageFullError.exit_code, source, tmp_path / "target", "--fs", fs)
        assert "TMPDIR" in line
        assert not list(small.iterdir())
    finally:
        tool("umount", small)


# -- Interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Nothing has the name, no temporary file stays, and the next run goes on."""
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with StoppingRegistry() as registry:
        assert isinstance(registry, StoppingRegistry)
        arguments = ["convert", *SIZE, f"{registry.host}/app:v1", f"oci:{target}:v1"]
        process = spawn("-v", *arguments)
        errors: list[str] = []
        try:
            assert registry.half_sent.wait(30)
            assert process.stderr is not None
            # Two layers are finished: the file system, and that below the one that hangs.
            while sum("converted" in line for line in errors) < 2:
                errors.append(process.stderr.readline())
                assert errors[-1], errors
            process.send_signal(number)
            # Long before the registry gives up.
            errors += process.communicate(timeout=15)[1].splitlines()
        finally:
            registry.end.set()
            process.kill()
            process.wait()
        if number == signal.SIGINT:
            assert process.returncode == EXIT_INTERRUPTED
            assert "interrupted" in "".join(errors)
        assert not (target / "index.json").exists()
        assert not list(scratch.iterdir())
        result = succeed_json(*arguments)
    assert layers_of(result, "how") == ["reused", "reused", "converted"]
    new_memory(tmp_path)
    whole = layout(tmp_path / "whole", PlainImage([rich_layers()[0], BIG]))
    assert convert(whole, f"oci:{tmp_path}/other:v1")["digest"] == result["digest"]


# -- Users and terminals -------------------------------------------------------------------------


@needs_root
def test_an_ordinary_user(server: RealRegistry, tmp_path: Path) -> None:
    name = f"{server.host}/user/app"
    copy_to(layout(tmp_path / "source"), f"{name}:v1")
    home = Path(tempfile.mkdtemp(prefix="hybrid-user-"))
    try:
        os.chown(home, 65534, 65534)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i",
                f"HOME={home}", f"TMPDIR={home}", f"PATH={os.environ['PATH']}"]  # fmt: skip
        program = [*user, sys.executable, "-m", "hybrid"]
        if subprocess.run([*program, "--version"], capture_output=True, cwd="/").returncode:
            pytest.skip("an ordinary user cannot read this checkout")
        for fs in ("ext4", "erofs"):
            done = subprocess.run(
                [*program, "convert", *SIZE, "--fs", fs, f"{name}:v1", f"{name}/{fs}:user"],
                capture_output=True, text=True, cwd="/",
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            digest = done.stdout.strip().partition("@")[2]
            assert convert("--fs", fs, f"{name}:v1", f"{name}/{fs}:root")["digest"] == digest
    finally:
        shutil.rmtree(home)


def test_progress_on_a_terminal_only(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "source"), f"oci:{tmp_path}/target:v1"
    master, slave = pty.openpty()
    process = spawn("convert", *SIZE, source, target, stderr=slave)
    os.close(slave)
    shown = bytearray()
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:
        pass  # the terminal's other side was closed
    finally:
        os.close(master)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.startswith(f"{target}@sha256:")
    assert "4 layers converted, 0 reused" in shown.decode()
    assert succeed("convert", *SIZE, source, target) == output
