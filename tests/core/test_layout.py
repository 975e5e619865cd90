"""OCI layouts on disk, made by the builders and by the real skopeo."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oci
from support.builders import build_blob

from hybrid.core.layout import OciLayout
from hybrid.core.manifest import (
    Index,
    Manifest,
    has_overlaybd_annotations,
    overlaybd_layers,
    parse_document,
)
from hybrid.core.platforms import Platform
from hybrid.core.recognize import RECOGNIZE_BYTES, unannotated_image
from hybrid.core.reference import ManifestBlob
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    UnsupportedError,
)

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
LAYERS = [build_blob(b"bottom" * 1000), build_blob(b"top" * 1000)]


@pytest.fixture
def builder(tmp_path: Path) -> oci.LayoutBuilder:
    return oci.LayoutBuilder(tmp_path / "layout")


def manifest_in(layout: OciLayout, reference: str | None, platform: Platform = AMD64) -> Manifest:
    manifest = parse_document(layout.resolve(reference, platform))
    assert isinstance(manifest, Manifest)
    return manifest


# -- resolving names -----------------------------------------------------------------------------


def test_tag_and_digest(builder: oci.LayoutBuilder) -> None:
    one, two = builder.add_image(LAYERS[:1], "one"), builder.add_image(LAYERS, "two")
    layout = OciLayout(builder.directory)
    assert layout.tags() == ["one", "two"]
    for name, digest in (("one", one), ("two", two), (one, one), (two, two)):
        data = builder.path(digest).read_bytes()
        assert layout.resolve(name, AMD64) == ManifestBlob(data, oci.OCI_MANIFEST, digest)
    layers = overlaybd_layers(manifest_in(layout, "two"), "two")
    assert [layer.digest for layer in layers] == [oci.digest_of(data) for data in LAYERS]


def test_digest_that_is_not_in_the_index(builder: oci.LayoutBuilder) -> None:
    document = oci.manifest_of([])
    digest = builder.put(document)
    found = OciLayout(builder.directory).resolve(digest, AMD64)
    assert found == ManifestBlob(document, "", digest)


def test_full_name(builder: oci.LayoutBuilder) -> None:
    name = "docker.io/library/app:latest"
    digest = builder.add_image(LAYERS, "latest", annotations={"io.containerd.image.name": name})
    layout = OciLayout(builder.directory)
    assert layout.resolve(name, AMD64).digest == digest
    assert layout.resolve("latest", AMD64).digest == digest


def test_nothing_asked_for(builder: oci.LayoutBuilder) -> None:
    only = builder.add_image(LAYERS[:1])
    assert OciLayout(builder.directory).resolve(None, AMD64).digest == only
    tagged = builder.add_image(LAYERS, "v1")
    assert OciLayout(builder.directory).resolve(None, AMD64).digest == tagged
    builder.add_image(LAYERS[1:], "v2")
    with pytest.raises(NotFoundError, match=r"none of them tagged 'latest' \(there are: v1, v2\)"):
        OciLayout(builder.directory).resolve(None, AMD64)
    latest = builder.add_image(LAYERS[::-1], "latest")
    assert OciLayout(builder.directory).resolve(None, AMD64).digest == latest


def test_unknown_names(builder: oci.LayoutBuilder) -> None:
    layout = OciLayout(builder.directory)
    with pytest.raises(NotFoundError, match="has no images in it"):
        layout.resolve(None, AMD64)
    with pytest.raises(NotFoundError, match=r"has no image 'x' \(no image in it has a tag\)"):
        layout.resolve("x", AMD64)
    with pytest.raises(NotFoundError, match=r"blob sha256:0+ is missing"):
        layout.resolve("sha256:" + "0" * 64, AMD64)
    for number in range(30):
        builder.add_image(LAYERS, f"v{number:02}")
    with pytest.raises(NotFoundError, match=r"has no image 'x' \(there are: v00, .*v19, \.\.\.\)"):
        OciLayout(builder.directory).resolve("x", AMD64)


@pytest.mark.parametrize("tag", ["multi", ""])
def test_one_name_for_several_platforms(builder: oci.LayoutBuilder, tag: str) -> None:
    digests = [
        builder.add_image(
            [layer], tag, platform={"os": "linux", "architecture": architecture, "variant": ""}
        )
        for layer, architecture in zip(LAYERS, ("amd64", "arm64"), strict=True)
    ]
    layout = OciLayout(builder.directory)
    for reference in (tag or None, None):
        assert layout.resolve(reference, AMD64).digest == digests[0]
        assert layout.resolve(reference, ARM64).digest == digests[1]
    with pytest.raises(NotFoundError, match="available: linux/amd64, linux/arm64"):
        layout.resolve(None, Platform("linux", "s390x"))


def test_a_single_image_is_taken_for_any_platform(builder: oci.LayoutBuilder) -> None:
    platform = {"os": "linux", "architecture": "arm64"}
    digest = builder.add_image(LAYERS, "x", platform=platform)
    assert OciLayout(builder.directory).resolve("x", AMD64).digest == digest


def test_ambiguous_names(builder: oci.LayoutBuilder) -> None:
    builder.add_image(LAYERS[:1], "x")
    builder.add_image(LAYERS, "x")
    with pytest.raises(NotFoundError, match="several images of the same name"):
        OciLayout(builder.directory).resolve("x", AMD64)


def test_one_tag_of_different_images(builder: oci.LayoutBuilder) -> None:
    """As ``docker save a b`` writes it: platforms must not decide between a and b."""
    for name, architecture in (("a", "amd64"), ("b", "arm64")):
        builder.add_image(
            [name.encode()],
            "latest",
            annotations={"io.containerd.image.name": f"docker.io/library/{name}:latest"},
            platform={"os": "linux", "architecture": architecture},
        )
    layout = OciLayout(builder.directory)
    with pytest.raises(NotFoundError, match=r"docker\.io/library/a:latest, docker\.io/library/b"):
        layout.resolve("latest", AMD64)
    assert (
        layout.resolve("docker.io/library/b:latest", AMD64).digest == builder.entries[1]["digest"]
    )


def test_the_same_entry_twice_is_one_image(builder: oci.LayoutBuilder) -> None:
    digest = builder.add_image(LAYERS, "x")
    assert builder.add_image(LAYERS, "x") == digest
    assert OciLayout(builder.directory).resolve("x", AMD64).digest == digest


def test_index_in_a_layout(builder: oci.LayoutBuilder) -> None:
    child = builder.put(oci.manifest_of([]))
    entries = [{"mediaType": oci.OCI_MANIFEST, "digest": child, "size": 1}]
    value = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
    builder.add(oci.to_json(value), "x")
    index = parse_document(OciLayout(builder.directory).resolve("x", AMD64))
    assert isinstance(index, Index)
    assert [entry.digest for entry in index.entries] == [child]


# -- damage --------------------------------------------------------------------------------------


def test_not_a_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no such directory: {tmp_path}/none"):
        OciLayout(tmp_path / "none")
    with pytest.raises(NotFoundError, match="is no OCI layout: it has no file oci-layout"):
        OciLayout(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="no such directory"):
        OciLayout(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("oci-layout", "{}", FormatError, "field imageLayoutVersion is missing"),
        ("oci-layout", "1.0.0", FormatError, "is not JSON"),
        ("oci-layout", '{"imageLayoutVersion": 1}', FormatError, "is no string"),
        ("oci-layout", '{"imageLayoutVersion": "2.0"}', UnsupportedError, "'2.0' is not supported"),
        ("index.json", "", FormatError, "index.json is not JSON"),
        ("index.json", "{}", FormatError, "field manifests is missing"),
        ("index.json", '{"manifests": [{"digest": "x"}]}', FormatError, r"manifests\[0\]: field"),
        ("index.json", " " * (5 << 20), FormatError, "longer than 4194304 bytes"),
        ("index.json", None, NotFoundError, "the index of the OCI layout is missing"),
    ],
)
def test_damaged_layouts(
    builder: oci.LayoutBuilder,
    name: str,
    text: str | None,
    error: type[HybridError],
    message: str,
) -> None:
    path = builder.directory / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        OciLayout(builder.directory)


def test_files_that_could_block(builder: oci.LayoutBuilder) -> None:
    digest = builder.add_image(LAYERS, "x")
    builder.path(digest).unlink()
    os.mkfifo(builder.path(digest))
    with pytest.raises(FormatError, match="is not a regular file"):
        OciLayout(builder.directory).resolve("x", AMD64)


def test_damaged_manifest(builder: oci.LayoutBuilder) -> None:
    digest = builder.add_image(LAYERS, "x")
    data = bytearray(builder.path(digest).read_bytes())
    data[-3] ^= 1
    builder.path(digest).write_bytes(data)
    with pytest.raises(FormatError, match="is damaged: its digest is sha256:"):
        OciLayout(builder.directory).resolve("x", AMD64)


def test_wrong_size_in_the_index(builder: oci.LayoutBuilder) -> None:
    digest = builder.add_image(LAYERS, "x", size=3)
    for reference in ("x", digest):
        with pytest.raises(FormatError, match="has 3 bytes, but it has"):
            OciLayout(builder.directory).resolve(reference, AMD64)


def test_get_blob(builder: oci.LayoutBuilder) -> None:
    digest = builder.put(b"12345")
    layout = OciLayout(builder.directory)
    assert layout.get_blob(digest, 5) == b"12345"
    with pytest.raises(FormatError, match="is longer than 4 bytes"):
        layout.get_blob(digest, 4)


@pytest.mark.parametrize(
    "digest", ["sha256:../../oci-layout", "../index.json", "sha256:" + "A" * 64]
)
def test_no_way_out_of_the_layout(builder: oci.LayoutBuilder, digest: str) -> None:
    layout = OciLayout(builder.directory)
    with pytest.raises(ValueError, match="is no sha256 digest"):
        layout.get_blob(digest, 100)
    with pytest.raises(ValueError, match="is no sha256 digest"):
        layout.blob_source(digest, 100)
    with pytest.raises(NotFoundError, match="has no image"):
        layout.resolve(digest, AMD64)


async def test_blob_source(builder: oci.LayoutBuilder) -> None:
    digest = builder.put(b"0123456789")
    layout = OciLayout(builder.directory)
    source = layout.blob_source(digest, 10)
    assert await source.pread(3, 4) == b"3456"
    await source.aclose()
    with pytest.raises(FormatError, match="is truncated: it has 10 bytes, its descriptor says 11"):
        layout.blob_source(digest, 11)
    with pytest.raises(FormatError, match="is too long: it has 10 bytes"):
        layout.blob_source(digest, 9)
    builder.path(digest).unlink()
    with pytest.raises(NotFoundError, match=f"blob {digest} is missing"):
        layout.blob_source(digest, 10)


def test_without_permission(builder: oci.LayoutBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    digest = builder.put(b"1")
    layout = OciLayout(builder.directory)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionNeededError, match="permission denied"):
        layout.get_blob(digest, 1)
    with pytest.raises(PermissionNeededError, match="permission denied"):
        OciLayout(builder.directory)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.data())
def test_any_index_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("fuzz") / "layout"
    builder = oci.LayoutBuilder(directory)
    builder.add_image(LAYERS[:1], "x", platform={"os": "linux", "architecture": "amd64"})
    text = bytearray((directory / "index.json").read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=4)):
        text[position] = data.draw(st.integers(0, 255))
    (directory / "index.json").write_bytes(text)
    message = ""
    try:
        OciLayout(directory).resolve(data.draw(st.sampled_from(["x", None])), AMD64)
    except HybridError as error:
        message = str(error)
    assert "\n" not in message


# -- what skopeo makes of an overlaybd image -----------------------------------------------------

Copy = Callable[..., OciLayout]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Copy a two-layer image with the real skopeo, with the given options."""
    directory = tmp_path_factory.mktemp("skopeo")
    builder = oci.LayoutBuilder(directory / "in")
    builder.add_image(LAYERS, "x")

    def copy(*options: str) -> OciLayout:
        target = directory / f"out{len(list(directory.iterdir()))}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", *options]
        names = [f"oci:{directory / 'in'}:x", f"oci:{target}:y"]
        subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
        return OciLayout(target)

    return copy


def first_bytes(layout: OciLayout, manifest: Manifest) -> bytes:
    bottom = manifest.layers[0]
    return layout.get_blob(bottom.digest, bottom.size)[:RECOGNIZE_BYTES]


def test_skopeo_with_preserved_digests(copied: Copy) -> None:
    manifest = manifest_in(copied("--preserve-digests"), "y")
    layers = overlaybd_layers(manifest, "y")
    assert [layer.digest for layer in layers] == [oci.digest_of(data) for data in LAYERS]


@pytest.mark.parametrize(
    ("options", "suffix"), [((), "+gzip"), (("--dest-compress-format", "zstd"), "+zstd")]
)
def test_skopeo_recompresses(copied: Copy, options: tuple[str, ...], suffix: str) -> None:
    layout = copied(*options)
    manifest = manifest_in(layout, "y")
    # The facts that the rest is built on: other blobs, other types, and no annotation left.
    assert [layer.media_type for layer in manifest.layers] == [oci.OCI_LAYER + suffix] * 2
    assert all(layer.annotations == {} for layer in manifest.layers)
    assert manifest.layers[0].digest != oci.digest_of(LAYERS[0])
    assert not has_overlaybd_annotations(manifest)
    error = unannotated_image("y", first_bytes(layout, manifest))
    assert "recompressed or changed on copy" in error.message
    assert "--preserve-digests" in error.hint


def test_a_tool_that_keeps_annotations(copied: Copy) -> None:
    """Annotations kept beside recompressed blobs, as other versions and tools do it."""
    layout = copied()
    manifest = json.loads(layout.resolve("y", AMD64).data)
    for layer, data in zip(manifest["layers"], LAYERS, strict=True):
        layer["annotations"] = oci.overlaybd_annotations(data)
    document = oci.to_json(manifest)
    parsed = parse_document(ManifestBlob(document, oci.OCI_MANIFEST, oci.digest_of(document)))
    assert isinstance(parsed, Manifest)
    with pytest.raises(UnsupportedError, match="recompressed") as caught:
        overlaybd_layers(parsed, "y")
    assert oci.digest_of(LAYERS[0]) in caught.value.message


def test_skopeo_on_a_plain_image(tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "in")
    tar = build_blob(b"echo\n", zfile=False, tar="ustar").replace(
        b"overlaybd.commit", b"run.sh" + bytes(10)
    )
    config = oci.image_config([tar])
    for data in (tar, config):
        builder.put(data)
    builder.add(oci.manifest_of([oci.descriptor(tar, oci.OCI_LAYER)], config), "x")
    names = [f"oci:{builder.directory}:x", f"oci:{tmp_path / 'out'}:y"]
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *names]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for layout in (OciLayout(builder.directory), OciLayout(tmp_path / "out")):
        manifest = manifest_in(layout, None)
        assert not has_overlaybd_annotations(manifest)
        assert "plain OCI" in unannotated_image("y", first_bytes(layout, manifest)).message
