"""Archives of ``docker save``: those of skopeo, and old, odd and damaged ones made by hand."""

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
import zstandard
from support import oci

from hybrid.build.docker_archive import DockerArchiveSource
from hybrid.core.byte_stream import read_all
from hybrid.core.manifest import Manifest, parse_document
from hybrid.core.reference import ArchiveReference
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    UnsupportedError,
)

BOTTOM = Random(1).randbytes(100_000)
TOP = Random(2).randbytes(5_000)


class Archive:
    """A docker archive, member by member."""

    def __init__(self) -> None:
        self.members: list[tuple[tarfile.TarInfo, bytes]] = []
        self.images: list[oci.Json] = []

    def add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.members.append((member, data))

    def link(self, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        self.members.append((member, b""))

    def image(
        self, layers: list[bytes], tags: list[str] | None = None, names: list[str] | None = None
    ) -> bytes:
        config = oci.image_config(layers)
        name = f"{oci.digest_of(config)[7:]}.json"
        self.add(name, config)
        if names is None:
            names = [f"{oci.digest_of(layer)[7:]}/layer.tar" for layer in layers]
            for member, data in zip(names, layers, strict=True):
                self.add(member, data)
        self.images.append({"Config": name, "RepoTags": tags, "Layers": names})
        return config

    def write(self, path: Path, manifest: bytes | None = None) -> Path:
        self.add("manifest.json", oci.to_json(self.images) if manifest is None else manifest)
        with tarfile.open(path, "w") as tar:
            for member, data in self.members:
                tar.addfile(member, io.BytesIO(data))
        return path


async def read_image(path: Path, tag: str | None = None) -> tuple[Manifest, list[bytes]]:
    """The made manifest, and the blobs that it names, config first."""
    source = await DockerArchiveSource.open(ArchiveReference(path, tag))
    try:
        blob = await source.get_manifest()
        assert oci.digest_of(blob.data) == blob.digest
        assert await source.get_manifest(blob.digest) == blob
        manifest = parse_document(blob)
        assert isinstance(manifest, Manifest)
        found = []
        for part in (manifest.config, *manifest.layers):
            found.append(await read_all(source.blob(part.digest, part.size), 1 << 20))
        return manifest, found
    finally:
        await source.aclose()


async def test_an_image(tmp_path: Path) -> None:
    archive = Archive()
    config = archive.image([BOTTOM, TOP], ["app:v1"])
    manifest, found = await read_image(archive.write(tmp_path / "a.tar"))
    assert found == [config, BOTTOM, TOP]
    assert [layer.media_type for layer in manifest.layers] == [oci.OCI_LAYER] * 2
    assert manifest.config.media_type == oci.OCI_CONFIG
    assert manifest.media_type == oci.OCI_MANIFEST
    again, _ = await read_image(tmp_path / "a.tar", "app:v1")
    assert again.digest == manifest.digest


def test_one_of_skopeo(tmp_path: Path) -> None:
    """As skopeo writes it, and what skopeo makes of what was read."""
    archive = Archive()
    config = archive.image([BOTTOM, TOP], ["example.com/team/app:v1"])
    ours = archive.write(tmp_path / "ours.tar")
    theirs = tmp_path / "theirs.tar"
    name = "example.com/team/app:v1"
    places = [f"docker-archive:{path}:{name}" for path in (ours, theirs)]
    subprocess.run(["skopeo", "copy", "-q", *places], check=True)
    _, found = trio.run(read_image, theirs, name)
    assert found == [config, BOTTOM, TOP]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
async def test_links_between_layers(tmp_path: Path, kind: bytes) -> None:
    archive = Archive()
    archive.add("./one/layer.tar", BOTTOM)
    target = "../one/layer.tar" if kind == tarfile.SYMTYPE else "one/layer.tar"
    archive.link("two/layer.tar", target, kind)
    archive.image([BOTTOM, BOTTOM], names=["one/layer.tar", "two/layer.tar"])
    _, found = await read_image(archive.write(tmp_path / "a.tar"))
    assert found[1:] == [BOTTOM, BOTTOM]


@pytest.mark.parametrize(
    ("compress", "suffix"),
    [(gzip.compress, "+gzip"), (zstandard.ZstdCompressor().compress, "+zstd")],
)
async def test_compressed_layers(
    tmp_path: Path, compress: Callable[[bytes], bytes], suffix: str
) -> None:
    archive = Archive()
    packed = compress(BOTTOM)
    archive.add("layer.tar.gz", packed)
    archive.image([BOTTOM], names=["layer.tar.gz"])
    manifest, found = await read_image(archive.write(tmp_path / "a.tar"))
    assert found[1] == packed
    assert manifest.layers[0].media_type == oci.OCI_LAYER + suffix


async def test_names(tmp_path: Path) -> None:
    archive = Archive()
    first = archive.image([BOTTOM], ["app:v1", "app:latest", "example.com:5000/x/app:old"])
    second = archive.image([TOP], ["other:v2"])
    path = archive.write(tmp_path / "a.tar")
    for tag, config in (
        ("app:v1", first),
        ("app", first),
        ("docker.io/library/app:v1", first),
        ("example.com:5000/x/app:old", first),
        ("old", first),
        ("other:v2", second),
        ("v2", second),
    ):
        assert (await read_image(path, tag))[1][0] == config
    for tag in (None, "v3", "app:v2", "other"):
        with pytest.raises(NotFoundError, match=r"app:latest.*other:v2"):
            await read_image(path, tag)


async def test_an_image_without_a_name(tmp_path: Path) -> None:
    archive = Archive()
    archive.image([TOP], None)
    path = archive.write(tmp_path / "a.tar")
    assert (await read_image(path))[1][1] == TOP
    with pytest.raises(NotFoundError, match="no image in it has a name"):
        await read_image(path, "app")


async def test_a_layer_that_is_not_what_its_config_says(tmp_path: Path) -> None:
    archive = Archive()
    archive.add("layer.tar", TOP)
    archive.image([BOTTOM], names=["layer.tar"])
    with pytest.raises(FormatError, match="digest"):
        await read_image(archive.write(tmp_path / "a.tar"))


def damaged_archives() -> list[tuple[str, Callable[[Archive], bytes | None], str]]:
    def other_config(archive: Archive) -> None:
        archive.add(archive.images[0]["Config"], oci.image_config([TOP]))

    def no_layer(archive: Archive) -> None:
        archive.images[0]["Layers"] = ["missing"]

    def too_few(archive: Archive) -> None:
        archive.images[0]["Layers"] = []

    def no_config(archive: Archive) -> None:
        archive.images[0]["Config"] = "missing.json"

    def loop(archive: Archive) -> None:
        archive.link("a", "b")
        archive.link("b", "a")
        archive.images[0]["Layers"] = ["a"]

    def device(archive: Archive) -> None:
        archive.link("dev", "", tarfile.CHRTYPE)
        archive.images[0]["Layers"] = ["dev"]

    def outside(archive: Archive) -> None:
        archive.link("out", "../../etc/passwd")
        archive.images[0]["Layers"] = ["out"]

    return [
        ("config", other_config, "but the name"),
        ("no layer", no_layer, "no member 'missing'"),
        ("too few layers", too_few, "0 layers, but its config names 1"),
        ("no config", no_config, "no member 'missing.json'"),
        ("loop", loop, "leads nowhere"),
        ("device", device, "no plain file"),
        ("outside", outside, "no member 'out'"),
        ("no json", lambda archive: b"{", "manifest.json"),
        ("no array", lambda archive: b"5", "manifest.json"),
        ("no strings", lambda archive: b'[{"Config": 5}]', "Config"),
        ("nothing", lambda archive: b"[]", "has no images"),
        ("no strings in Layers", lambda archive: b'[{"Config": "x", "Layers": [5]}]', "Layers"),
    ]


@pytest.mark.parametrize(
    ("change", "words"), [pytest.param(c, w, id=name) for name, c, w in damaged_archives()]
)
async def test_damaged_archives(
    tmp_path: Path, change: Callable[[Archive], bytes | None], words: str
) -> None:
    archive = Archive()
    archive.image([BOTTOM], ["app:v1"])
    manifest = change(archive)
    with pytest.raises(HybridError, match=words):
        await read_image(archive.write(tmp_path / "a.tar", manifest))


async def test_what_is_no_archive(tmp_path: Path) -> None:
    archive = Archive()
    archive.image([BOTTOM], ["app:v1"])
    whole = archive.write(tmp_path / "a.tar").read_bytes()
    other = tmp_path / "other.tar"
    with pytest.raises(NotFoundError):
        await read_image(other)
    with pytest.raises(FormatError, match="not a regular file"):
        await read_image(Path("/dev/null"))
    for data, kind, words in (
        (b"", FormatError, "no archive"),
        (b"not a tar" * 1000, FormatError, "no archive"),
        (gzip.compress(whole), UnsupportedError, "uncompress"),
    ):
        other.write_bytes(data)
        with pytest.raises(kind, match=words):
            await read_image(other)


async def test_cut_anywhere(tmp_path: Path) -> None:
    """Never other bytes than the right ones."""
    archive = Archive()
    config = archive.image([TOP, BOTTOM], ["app:v1"])
    whole = archive.write(tmp_path / "a.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for length in range(0, len(whole), 997):
        cut.write_bytes(whole[:length])
        try:
            _, found = await read_image(cut)
        except HybridError:
            continue
        assert found == [config, TOP, BOTTOM]


async def test_many_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.build.archive_file.MAX_MEMBERS", 3)
    archive = Archive()
    archive.image([BOTTOM, TOP], ["app:v1"])
    with pytest.raises(UnsupportedError, match="more than 3 members"):
        await read_image(archive.write(tmp_path / "a.tar"))
