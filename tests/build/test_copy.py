"""Copying images: which of an index, what is left out, what is there already, what fails."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from support import oci
from support.faulty_registry import Reply, Request, faulty_registry
from support.registry import RealRegistry

from hybrid.build.contract import Advance, PutBlob
from hybrid.build.copy import CopyResult, Watcher, copy_image
from hybrid.build.opening import open_image_destination, open_image_source
from hybrid.build.selection import EVERYTHING, Selection, parse_selection
from hybrid.config import load_global_config
from hybrid.core.platforms import Platform
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)

AMD64 = Selection((Platform("linux", "amd64"),))
ARM64 = Selection((Platform("linux", "arm64"),))


@pytest.fixture(scope="module")
def server() -> Iterator[RealRegistry]:
    with RealRegistry() as registry:
        yield registry


async def copy(
    source: str, destination: str, selection: Selection = AMD64, **options: Any
) -> CopyResult:
    async with AsyncExitStack() as stack:
        config = load_global_config(None)
        return await copy_image(
            await open_image_source(source, config, stack),
            await open_image_destination(destination, config, stack),
            selection,
            **options,
        )


def layers(seed: int, count: int = 3) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(random.randint(1, 200_000)) for _ in range(count)]


@dataclass
class Multi:
    """An index of three platforms that share a layer, with an attestation and nested indexes."""

    directory: Path
    digest: str
    children: dict[str, str]
    attestation: str

    @property
    def name(self) -> str:
        return f"oci:{self.directory}:multi"


def make_multi(directory: Path) -> Multi:
    builder = oci.LayoutBuilder(directory)
    shared = b"a layer that all of them have" * 1000
    entries = []
    children = {}
    for number, (architecture, variant) in enumerate((("amd64", ""), ("arm64", ""), ("arm", "v7"))):
        own = [shared, *layers(number, 2)]
        config = oci.image_config(own, architecture)
        for data in (*own, config):
            builder.put(data)
        document = oci.manifest_of([oci.descriptor(x, oci.OCI_LAYER) for x in own], config)
        children[architecture] = builder.put(document)
        platform = {"os": "linux", "architecture": architecture}
        platform |= {"variant": variant} if variant else {}
        entries.append(oci.descriptor(document, oci.OCI_MANIFEST, platform=platform))
    statement = b'{"a": "statement"}'
    attestation = oci.manifest_of([oci.descriptor(statement, "application/vnd.in-toto+json")])
    for data in (statement, b"{}"):
        builder.put(data)
    builder.put(attestation)
    entries.append(
        oci.descriptor(
            attestation,
            oci.OCI_MANIFEST,
            platform={"os": "unknown", "architecture": "unknown"},
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        )
    )
    index = oci.to_json({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    digest = builder.add(index, "multi", mediaType=oci.OCI_INDEX)
    return Multi(directory, digest, children, oci.digest_of(attestation))


@pytest.fixture
def multi(tmp_path: Path) -> Multi:
    return make_multi(tmp_path / "multi")


def index_of(entries: list[oci.Json]) -> bytes:
    return oci.to_json({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})


def blobs(directory: Path) -> set[str]:
    return {path.name for path in (directory / "blobs" / "sha256").iterdir()}


# -- plain manifests -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oci", "docker", "overlaybd", "artifact", "odd"])
async def test_there_and_back(server: RealRegistry, tmp_path: Path, kind: str) -> None:
    """layout -> registry -> registry -> layout: the same bytes of every kind of image."""
    builder = oci.LayoutBuilder(tmp_path / "source")
    own = layers(len(kind))
    config = oci.image_config(own)
    for data in (*own, config):
        builder.put(data)
    media_types = {"docker": oci.DOCKER_LAYER, "artifact": "text/x-anything", "odd": "a.weird/type"}
    described = [oci.descriptor(x, media_types.get(kind, oci.OCI_LAYER)) for x in own]
    fields: dict[str, Any] = {}
    if kind == "overlaybd":
        described = [oci.native_layer(x) for x in own]
    if kind == "docker":
        fields["mediaType"] = oci.DOCKER_MANIFEST
    if kind == "artifact":
        fields["artifactType"] = "application/x-thing"
        fields["annotations"] = {"\u00e4": "\u00f6"}
    document = oci.manifest_of(described, config, **fields)
    digest = builder.add(document, "v1")
    repository = f"{server.host}/copy/{kind}"
    first = await copy(f"oci:{tmp_path}/source:v1", f"{repository}:v1")
    assert first.reference == f"{repository}:v1@{digest}"
    assert first.count("written") == 4
    assert first.bytes_of("written") == sum(map(len, own)) + len(config)
    second = await copy(f"{repository}:v1", f"{repository}-other:v2")
    assert second.count("mounted") == 4
    third = await copy(f"{repository}-other@{digest}", f"oci:{tmp_path}/target:back")
    assert (third.digest, third.count("written")) == (digest, 4)
    assert blobs(tmp_path / "target") == blobs(tmp_path / "source")
    for name in blobs(tmp_path / "source"):
        assert (tmp_path / "target/blobs/sha256" / name).read_bytes() == builder.path(
            f"sha256:{name}"
        ).read_bytes()


async def test_again_sends_nothing(server: RealRegistry, multi: Multi) -> None:
    target = f"{server.host}/copy/again:v1"
    assert (await copy(multi.name, target)).count("written") == 4
    server.forget_requests()
    again = await copy(multi.name, target)
    assert (again.count("present"), again.count("written")) == (4, 0)
    assert not server.requests("POST")
    # Another platform shares one layer with it.
    other = await copy(multi.name, f"{server.host}/copy/again:arm", ARM64)
    assert (other.count("present"), other.count("written")) == (1, 3)


async def test_a_shared_blob_moves_once(server: RealRegistry, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "source")
    builder.add_image([b"same", b"same", b"other", b"same"], "v1")
    result = await copy(f"oci:{tmp_path}/source", f"{server.host}/copy/same:v1")
    assert result.count("written") == 3


async def test_layers_that_are_not_to_be_distributed(server: RealRegistry, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "source")
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    described = [
        oci.descriptor(b"somewhere else", foreign, urls=["https://example.com/layer"]),
        oci.descriptor(b"here", oci.OCI_LAYER),
    ]
    builder.put(b"here")
    builder.put(b"{}")
    builder.add(oci.manifest_of(described), "v1")
    result = await copy(f"oci:{tmp_path}/source", f"oci:{tmp_path}/target:v1")
    assert result.count("written") == 2


# -- indexes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
async def test_one_platform(multi: Multi, tmp_path: Path, architecture: str) -> None:
    selection = Selection((Platform("linux", architecture),))
    result = await copy(multi.name, f"oci:{tmp_path}/target:v1", selection)
    assert result.digest == multi.children[architecture]
    assert len(blobs(tmp_path / "target")) == 5


async def test_all_platforms(server: RealRegistry, multi: Multi, tmp_path: Path) -> None:
    """Byte for byte, with attestations."""
    target = f"{server.host}/copy/all:v1"
    assert (await copy(multi.name, target, EVERYTHING)).digest == multi.digest
    back = await copy(target, f"oci:{tmp_path}/back:v1", EVERYTHING)
    assert (back.digest, back.manifests) == (multi.digest, 5)
    assert blobs(tmp_path / "back") == blobs(multi.directory)


async def test_some_platforms(multi: Multi, tmp_path: Path) -> None:
    """A new index, whose entries are as they were; attestations are left out."""
    selection = parse_selection(["linux/arm64", "linux/arm/v7", "linux/aarch64"], "x86_64")
    result = await copy(multi.name, f"oci:{tmp_path}/some:v1", selection)
    path = tmp_path / "some/blobs/sha256" / result.digest[7:]
    found = json.loads(path.read_bytes())
    everything = json.loads((multi.directory / "blobs/sha256" / multi.digest[7:]).read_bytes())
    assert found == everything | {"manifests": everything["manifests"][1:3]}
    again = await copy(multi.name, f"oci:{tmp_path}/again:v1", selection)
    assert again.digest == result.digest
    # What was taken can be taken from again.
    one = await copy(f"oci:{tmp_path}/some:v1", f"oci:{tmp_path}/one:v1", ARM64)
    assert one.digest == multi.children["arm64"]


async def test_a_platform_that_is_not_there(multi: Multi, tmp_path: Path) -> None:
    selection = parse_selection(["linux/s390x"], "x86_64")
    with pytest.raises(NotFoundError, match="linux/amd64, linux/arm/v7, linux/arm64"):
        await copy(multi.name, f"oci:{tmp_path}/target:v1", selection)
    assert not (tmp_path / "target").exists()


def test_selections() -> None:
    assert parse_selection([], "aarch64") == Selection((Platform("linux", "arm64"),))
    assert parse_selection(["all"], "x86_64") == EVERYTHING
    with pytest.raises(UsageError, match="no room"):
        parse_selection(["all", "linux/amd64"], "x86_64")
    with pytest.raises(UsageError, match="no platform"):
        parse_selection(["amd64"], "x86_64")


async def test_indexes_in_an_index(multi: Multi, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder.__new__(oci.LayoutBuilder)
    builder.directory, builder.entries = multi.directory, []
    document = (multi.directory / "blobs/sha256" / multi.digest[7:]).read_bytes()
    for _ in range(3):
        entry = oci.descriptor(document, oci.OCI_INDEX)
        document = index_of([entry])
        nested = builder.add(document, "nested", mediaType=oci.OCI_INDEX)
    name = f"oci:{multi.directory}@{nested}"
    assert (await copy(name, f"oci:{tmp_path}/all:v1", EVERYTHING)).digest == nested
    entry = oci.descriptor(document, oci.OCI_INDEX)
    document = index_of([entry])
    deeper = builder.add(document, "deeper", mediaType=oci.OCI_INDEX)
    with pytest.raises(FormatError, match="nested"):
        await copy(f"oci:{multi.directory}@{deeper}", f"oci:{tmp_path}/deep:v1", EVERYTHING)
    with pytest.raises(FormatError, match="nested"):
        await copy(f"oci:{multi.directory}@{deeper}", f"oci:{tmp_path}/deep:v1", AMD64)


async def test_an_index_that_lists_blobs(tmp_path: Path) -> None:
    """As build caches do."""
    builder = oci.LayoutBuilder(tmp_path / "cache")
    entries = [oci.descriptor(b"cached layer", oci.OCI_LAYER), oci.descriptor(b"{}", "x/config")]
    for data in (b"cached layer", b"{}"):
        builder.put(data)
    index = oci.to_json({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    builder.add(index, "cache", mediaType=oci.OCI_INDEX)
    result = await copy(f"oci:{tmp_path}/cache", f"oci:{tmp_path}/target", EVERYTHING)
    assert blobs(tmp_path / "target") == blobs(tmp_path / "cache")
    assert (result.count("written"), result.manifests) == (2, 1)


async def test_a_tag_for_several_manifests_without_an_index(tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "source")
    for architecture in ("amd64", "arm64"):
        platform = {"os": "linux", "architecture": architecture}
        builder.add_image([architecture.encode()], "v1", platform=platform)
    with pytest.raises(UnsupportedError, match="no index holds together"):
        await copy(f"oci:{tmp_path}/source:v1", f"oci:{tmp_path}/target:v1", EVERYTHING)
    result = await copy(f"oci:{tmp_path}/source:v1", f"oci:{tmp_path}/target:v1", ARM64)
    assert result.digest == builder.entries[1]["digest"]


# -- failures --------------------------------------------------------------------------------------


async def test_a_damaged_layer_tags_nothing(server: RealRegistry, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "source")
    own = layers(77)
    builder.add_image(own, "v1")
    path = builder.path(oci.digest_of(own[1]))
    path.write_bytes(own[1][:-1] + bytes([own[1][-1] ^ 1]))
    for target in (f"{server.host}/copy/damaged:v1", f"oci:{tmp_path}/target:v1"):
        with pytest.raises(FormatError, match=f"{path}.*digest"):
            await copy(f"oci:{tmp_path}/source:v1", target)
        with pytest.raises(NotFoundError):
            await copy(target, f"oci:{tmp_path}/other:v1")
    path.unlink()
    with pytest.raises(NotFoundError):
        await copy(f"oci:{tmp_path}/source:v1", f"oci:{tmp_path}/target:v1")
    path.write_bytes(own[1])
    result = await copy(f"oci:{tmp_path}/source:v1", f"oci:{tmp_path}/target:v1")
    assert result.count("present") == 3 or result.count("written") + result.count("present") == 4


async def test_a_child_of_another_size(multi: Multi, tmp_path: Path) -> None:
    path = multi.directory / "blobs/sha256" / multi.digest[7:]
    index = json.loads(path.read_bytes())
    index["manifests"][0]["size"] += 1
    builder = oci.LayoutBuilder.__new__(oci.LayoutBuilder)
    builder.directory, builder.entries = multi.directory, []
    digest = builder.add(oci.to_json(index), "odd", mediaType=oci.OCI_INDEX)
    with pytest.raises(FormatError, match="its index says"):
        await copy(f"oci:{multi.directory}@{digest}", f"oci:{tmp_path}/target:v1")


async def test_a_wrong_digest_as_destination_is_refused_first(
    server: RealRegistry, multi: Multi
) -> None:
    server.forget_requests()
    name = f"{server.host}/copy/refused@{oci.digest_of(b'other')}"
    with pytest.raises(UsageError, match="cannot become"):
        await copy(multi.name, name)
    assert not server.requests("", "/copy/refused")


async def test_a_digest_as_destination(server: RealRegistry, multi: Multi) -> None:
    name = f"{server.host}/copy/by-digest@{multi.digest}"
    assert (await copy(multi.name, name, EVERYTHING)).reference == name
    tagged = f"{server.host}/copy/by-digest:v1@{multi.digest}"
    assert (await copy(multi.name, tagged, EVERYTHING)).reference == tagged
    again = await copy(f"{server.host}/copy/by-digest:v1", tagged, EVERYTHING)
    assert again.digest == multi.digest


@pytest.mark.parametrize("name", ["config.json", "./config.v1.json"])
async def test_what_is_no_image(tmp_path: Path, multi: Multi, name: str) -> None:
    with pytest.raises(UsageError, match="image config"):
        await copy(name, f"oci:{tmp_path}/target")
    with pytest.raises(UsageError, match="image config"):
        await copy(multi.name, name)
    with pytest.raises(UsageError, match="can only be read"):
        await copy(multi.name, f"docker-archive:{tmp_path}/a.tar")


async def test_an_interrupted_copy_goes_on(multi: Multi, tmp_path: Path) -> None:
    """Cancelled in the middle, as by Ctrl-C: no tag, and what is there is not copied again."""
    target = f"oci:{tmp_path}/target:v1"
    with trio.CancelScope() as scope:

        class Interrupting(Watcher):
            def end(self, digest: str, put: PutBlob | None) -> None:
                scope.cancel()

        await copy(multi.name, target, jobs=1, watcher=Interrupting())
    assert scope.cancelled_caught
    assert not (tmp_path / "target/index.json").exists()
    assert not list((tmp_path / "target").rglob("*.part"))
    result = await copy(multi.name, target)
    assert result.count("present") == 1
    assert result.count("written") == 3


async def test_the_watcher_hears_of_every_blob(multi: Multi, tmp_path: Path) -> None:
    heard: dict[str, list[Any]] = {}

    class Listening(Watcher):
        def begin(self, digest: str, size: int) -> Advance:
            heard[digest] = [size, 0, None]

            def advance(count: int) -> None:
                heard[digest][1] += count

            return advance

        def end(self, digest: str, put: PutBlob | None) -> None:
            heard[digest][2] = put

    result = await copy(multi.name, f"oci:{tmp_path}/target:v1", watcher=Listening())
    assert set(heard) == set(result.blobs)
    for size, gone, put in heard.values():
        assert size == gone == put.size


async def test_a_registry_without_media_types(tmp_path: Path) -> None:
    """Neither in the answer nor in the manifest: its shape tells."""
    document = {
        "schemaVersion": 2,
        "config": oci.descriptor(b"{}", oci.OCI_CONFIG),
        "layers": [oci.descriptor(b"layer", oci.OCI_LAYER)],
    }
    data = oci.to_json(document)

    def answer(request: Request) -> Reply:
        if "/manifests/" in request.path:
            return Reply(200, data)
        return Reply(200, {oci.digest_of(x): x for x in (b"{}", b"layer")}[request.path[-71:]])

    async with faulty_registry(answer, hang_up_on_tls=True) as server:
        result = await copy(f"{server.host}/a/b:v1", f"oci:{tmp_path}/target:v1")
    assert result.digest == oci.digest_of(data)
    entry = json.loads((tmp_path / "target/index.json").read_text())["manifests"][0]
    assert entry["mediaType"] == oci.OCI_MANIFEST


async def test_many_manifests_are_bounded(
    multi: Multi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.build.copy.MAX_MANIFESTS", 3)
    with pytest.raises(HybridError, match="more than 3 manifests"):
        await copy(multi.name, f"oci:{tmp_path}/target:v1", EVERYTHING)
