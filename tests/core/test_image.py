"""Whole images: names resolved, layers opened in parallel, merged, read from a real registry."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support import golden, golden_image, oci
from support.registry import RealRegistry

from hybrid.config import GlobalConfig, RegistryHost, load_global_config
from hybrid.core.image import Image, ImageRequest, open_image
from hybrid.errors import (
    ConfigError,
    FormatError,
    NetworkError,
    NotFoundError,
    SystemSupportError,
    UnsupportedError,
    UsageError,
)

EXPECTED = golden.expected("img", "img3")


@pytest.fixture
def config(tmp_path: Path) -> GlobalConfig:
    return replace(load_global_config(), cache_dir=tmp_path / "cache", retry_seconds=1.0)


@pytest.fixture(scope="module")
def registry() -> Iterator[RealRegistry]:
    with RealRegistry() as running:
        yield running


@asynccontextmanager
async def opened(image: str, config: GlobalConfig, **options: str) -> AsyncIterator[Image]:
    device = await open_image(ImageRequest(image, config, **options))  # type: ignore[arg-type]
    try:
        yield device
    finally:
        await device.aclose()


async def check_content(image: Image) -> None:
    assert image.size == 1 << 30
    for run in EXPECTED.runs:
        assert bytes(await image.pread(run.offset, len(run.data))) == bytes(run.data)


async def test_layout(config: GlobalConfig, tmp_path: Path) -> None:
    async with opened(golden_image.layout(tmp_path / "layout"), config) as image:
        await check_content(image)
        assert image.digest.startswith("sha256:")
        assert image.stats()["bytes_fetched"] == 0


async def test_config_file(config: GlobalConfig) -> None:
    async with opened(str(golden.tree() / "img" / "img3.config.json"), config) as image:
        await check_content(image)


async def test_registry_takes_one_request_a_layer(
    registry: RealRegistry, config: GlobalConfig
) -> None:
    name = golden_image.push(registry)
    registry.forget_requests()
    async with opened(name, config) as image:
        gets = registry.requests("GET", golden_image.REPOSITORY)
        assert [("/manifests/" in get.path, get.status) for get in gets] == [
            (True, 200), *[(False, 206)] * 3,
        ]  # fmt: skip
        assert image.stats()["bytes_fetched"] == sum(get.size for get in gets[1:])
        # The head of a layer comes with its first read, and nothing comes twice.
        await check_content(image)
        fetched = image.stats()["bytes_fetched"]
        await check_content(image)
        assert image.stats()["bytes_fetched"] == fetched <= image.stats()["bytes_total"]


async def test_a_second_opening_needs_only_the_manifest(
    registry: RealRegistry, config: GlobalConfig
) -> None:
    name = golden_image.push(registry)
    async with opened(name, config) as image:
        await check_content(image)
    registry.forget_requests()
    async with opened(name, config) as image:
        await check_content(image)
        assert image.stats()["bytes_fetched"] == 0
    assert ["/manifests/" in get.path for get in registry.requests("GET")] == [True]


async def test_a_few_reads_fetch_a_few_blocks(registry: RealRegistry, config: GlobalConfig) -> None:
    name = golden_image.push(registry)
    async with opened(name, config) as image:
        await image.pread(1024, 1024)  # the ext4 superblock
        stats = image.stats()
        assert 0 < stats["bytes_fetched"] < stats["bytes_total"] // 2


async def test_remote_lowers_of_a_config(
    registry: RealRegistry, config: GlobalConfig, tmp_path: Path
) -> None:
    golden_image.push(registry)
    lowers = [
        {"digest": oci.digest_of(layer), "size": len(layer) if number else 0}
        for number, layer in enumerate(golden_image.layers())
    ]
    lowers[1]["file"] = str(golden.tree() / "img" / "L2.lz4-4k.tar")
    path = tmp_path / "config.v1.json"
    url = f"http://{registry.host}/v2/{golden_image.REPOSITORY}/blobs"
    path.write_text(json.dumps({"repoBlobUrl": url, "lowers": lowers}))
    async with opened(str(path), config) as image:
        await check_content(image)


def config_of(path: Path, registry: RealRegistry, lowers: list[dict[str, object]]) -> str:
    url = f"http://{registry.host}/v2/{golden_image.REPOSITORY}/blobs"
    path.write_text(json.dumps({"repoBlobUrl": url, "lowers": lowers}))
    return str(path)


def remote_lowers() -> list[dict[str, object]]:
    layers = golden_image.layers()
    return [{"digest": oci.digest_of(layer), "size": len(layer)} for layer in layers]


async def test_a_local_layer_that_cannot_be_opened_is_read_from_the_registry(
    registry: RealRegistry, config: GlobalConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    golden_image.push(registry)
    with socket.socket(socket.AF_UNIX) as unopenable:
        unopenable.bind(str(tmp_path / "socket"))
        lowers = remote_lowers()
        lowers[1]["file"] = "socket"
        name = config_of(tmp_path / "config.v1.json", registry, lowers)
        async with opened(name, config) as image:
            await check_content(image)
        assert [r for r in caplog.records if "lowers[1]: cannot open" in r.getMessage()]
        lonely = tmp_path / "lonely.json"
        lonely.write_text(json.dumps({"lowers": [{"file": "socket"}]}))
        with pytest.raises(SystemSupportError, match=r"cannot open .*socket"):
            await open_image(ImageRequest(str(lonely), config))


async def test_a_damaged_local_layer_is_an_error_all_the_same(
    registry: RealRegistry, config: GlobalConfig, tmp_path: Path
) -> None:
    lowers = remote_lowers()
    lowers[1]["file"] = "L2"
    (tmp_path / "L2").write_bytes(golden_image.layers()[1][:-5000])
    name = config_of(tmp_path / "config.v1.json", registry, lowers)
    with pytest.raises(FormatError, match="L2"):
        await open_image(ImageRequest(name, config))


async def test_missing_local_layers_are_named(
    registry: RealRegistry, config: GlobalConfig, tmp_path: Path
) -> None:
    path = tmp_path / "config.v1.json"
    digest = oci.digest_of(b"")
    registry.forget_requests()
    for lower, words in (
        ({"file": "none"}, r"none \(.*digest and repoBlobUrl must be set"),
        ({"dir": "/no", "file": "none"}, r"none, /no/overlaybd\.commit, /no/\.commit, /no/o"),
        ({"file": "none", "digest": digest}, r"none \(.*registry, repoBlobUrl must be set"),
    ):
        path.write_text(json.dumps({"lowers": [lower]}))
        with pytest.raises(NotFoundError, match=rf"lowers\[0\]: no such file: .*{words}"):
            await open_image(ImageRequest(str(path), config))
    name = config_of(path, registry, [{"file": "none"}])
    with pytest.raises(NotFoundError, match=r"none \(.*registry, digest must be set"):
        await open_image(ImageRequest(name, config))
    assert registry.requests("GET") == []


async def test_a_bad_blob_url_is_named_with_its_file(config: GlobalConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.v1.json"
    lowers = [{"digest": oci.digest_of(b"")}]
    path.write_text(json.dumps({"repoBlobUrl": "https://u:hunter2@h/v2/a/blobs", "lowers": lowers}))
    with pytest.raises(ConfigError, match=r"config\.v1\.json: repoBlobUrl has a login") as caught:
        await open_image(ImageRequest(str(path), config))
    assert "hunter2" not in str(caught.value)


async def test_reading_goes_on_after_an_outage(config: GlobalConfig) -> None:
    with RealRegistry() as registry:
        async with opened(golden_image.push(registry), config) as image:
            registry.stop()
            with pytest.raises(NetworkError, match=registry.host):
                await check_content(image)
            registry.start()
            await check_content(image)


async def test_platform_of_an_index(registry: RealRegistry, config: GlobalConfig) -> None:
    repository = "golden/multi"
    golden_image.push(registry, repository=repository)
    layers = golden_image.layers()
    image_manifest = oci.manifest_of([oci.native_layer(layer) for layer in layers])
    other = oci.manifest_of([oci.native_layer(layers[0])])
    registry.push_blob(repository, b"{}")
    for document in (image_manifest, other):
        registry.push_manifest(repository, oci.digest_of(document), document, oci.OCI_MANIFEST)
    entries = [
        oci.descriptor(image_manifest, oci.OCI_MANIFEST)
        | {"platform": {"os": "linux", "architecture": "s390x"}},
        oci.descriptor(other, oci.OCI_MANIFEST)
        | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
    ]
    index = oci.to_json({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    registry.push_manifest(repository, "multi", index, oci.OCI_INDEX)
    name = f"{registry.host}/{repository}:multi"
    async with opened(name, config, platform="linux/s390x") as image:
        assert image.digest == oci.digest_of(image_manifest)
    async with opened(name, config, platform="linux/arm64") as image:
        assert image.digest == oci.digest_of(other)
    with pytest.raises(NotFoundError, match="linux/riscv64"):
        async with opened(name, config, platform="linux/riscv64"):
            pass


async def test_plain_image_is_named(config: GlobalConfig, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "layout")
    plain = golden.data_of("tars/layer1.tar.gz")
    manifest = oci.manifest_of([oci.descriptor(plain, oci.OCI_LAYER + "+gzip")])
    for blob in (plain, b"{}", manifest):
        builder.put(blob)
    builder.add(manifest, "plain")
    builder.write_index()
    with pytest.raises(UnsupportedError, match=r"plain OCI image.*hybrid convert"):
        await open_image(ImageRequest(f"oci:{tmp_path / 'layout'}:plain", config))


async def test_layers_without_bytes_are_not_asked_for(
    registry: RealRegistry, config: GlobalConfig
) -> None:
    """Their size is known to be 0: only a config may leave a size open."""
    repository = "golden/empty"
    for data in (b"", b"{}"):
        registry.push_blob(repository, data)
    for layer, error, words in (
        (oci.native_layer(b""), FormatError, "layer 0 .* has 0 bytes"),
        (oci.descriptor(b"", oci.OCI_LAYER), UnsupportedError, "plain OCI image"),
    ):
        registry.push_manifest(repository, "v1", oci.manifest_of([layer]), oci.OCI_MANIFEST)
        registry.forget_requests()
        with pytest.raises(error, match=words):
            await open_image(ImageRequest(f"{registry.host}/{repository}:v1", config))
        assert ["/manifests/" in get.path for get in registry.requests("GET")] == [True]


async def test_lost_annotations_are_named(config: GlobalConfig, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "layout")
    layer = golden_image.layers()[0]
    manifest = oci.manifest_of([oci.descriptor(layer, oci.OCI_LAYER)])
    for blob in (layer, b"{}", manifest):
        builder.put(blob)
    builder.add(manifest, "copied")
    builder.write_index()
    with pytest.raises(UnsupportedError, match=r"recompressed.*preserve-digests"):
        await open_image(ImageRequest(f"oci:{tmp_path / 'layout'}:copied", config))


async def test_truncated_blob_is_named(config: GlobalConfig, tmp_path: Path) -> None:
    layers = golden_image.layers()
    layers[1] = layers[1][:-5000]
    builder = oci.LayoutBuilder(tmp_path / "layout")
    builder.add_image(layers, "cut")
    builder.write_index()
    with pytest.raises(FormatError, match=f"{oci.digest_of(layers[1])[7:]}.*truncated"):
        await open_image(ImageRequest(f"oci:{tmp_path / 'layout'}:cut", config))


async def test_turbo_lowers_are_refused(config: GlobalConfig) -> None:
    path = golden.tree() / "turbooci" / "turbo1.config.json"
    with pytest.raises(UnsupportedError, match="TurboOCI"):
        await open_image(ImageRequest(str(path), config))


async def test_bad_names(config: GlobalConfig, tmp_path: Path) -> None:
    for name, error in (
        ("UPPER/case", UsageError),
        (f"oci:{tmp_path}/none", NotFoundError),
        (str(tmp_path / "none.json"), NotFoundError),
    ):
        with pytest.raises(error):
            await open_image(ImageRequest(name, config))
    empty = tmp_path / "empty.json"
    empty.write_text('{"lowers": []}')
    with pytest.raises(ConfigError):
        await open_image(ImageRequest(str(empty), config))


async def test_two_names_of_docker_hub_are_not_merged_silently(config: GlobalConfig) -> None:
    both = {"docker.io": RegistryHost(), "registry-1.docker.io": RegistryHost(insecure=True)}
    with pytest.raises(ConfigError, match="one host"):
        await open_image(ImageRequest("127.0.0.1:9/a:b", replace(config, registries=both)))
