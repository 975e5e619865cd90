"""Manifests, indexes, platforms, kinds of layers, and recognising layers by their bytes."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden, oci
from support.builders import build_blob, build_tar

from hybrid.core.json_fields import MAX_ENTRIES
from hybrid.core.manifest import (
    Descriptor,
    Index,
    LayerDescriptor,
    LayerKind,
    Manifest,
    has_overlaybd_annotations,
    overlaybd_layers,
    parse_document,
    select_platform,
)
from hybrid.core.platforms import Platform, host_platform, parse_platform
from hybrid.core.recognize import (
    RECOGNIZE_BYTES,
    _gunzip_head,
    _unzstd_head,
    looks_like_overlaybd_blob,
    unannotated_image,
)
from hybrid.core.reference import ManifestBlob
from hybrid.errors import FormatError, HybridError, NotFoundError, UnsupportedError, UsageError

IMAGE = "registry.test/app:1"
DATA = b"bytes of a layer"


def blob(document: Any, media_type: str = "") -> ManifestBlob:
    data = document if isinstance(document, bytes) else oci.to_json(document)
    return ManifestBlob(data, media_type, oci.digest_of(data))


def parse_manifest(document: Any, media_type: str = "") -> Manifest:
    manifest = parse_document(blob(document, media_type))
    assert isinstance(manifest, Manifest)
    return manifest


def parse_index(entries: list[Any], **fields: Any) -> Index:
    value = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
    index = parse_document(blob(value | fields))
    assert isinstance(index, Index)
    return index


def layers_of(*layers: Any) -> tuple[LayerDescriptor, ...]:
    return overlaybd_layers(parse_manifest(oci.manifest_of(list(layers))), IMAGE)


# -- manifests -----------------------------------------------------------------------------------


def test_documented_manifest() -> None:
    """The docker-flavoured example of image-format 8."""
    digest = "sha256:a640fc493a1522f8e40b74dc77386011d1d10783d81750b8135e127b703d5d93"
    document = {
        "schemaVersion": 2,
        "mediaType": oci.DOCKER_MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": "sha256:033843c467845ea16b10160341f001495b1f8c7ce8587c6cf02fac96a14c8ba3",
            "size": 9164,
        },
        "layers": [
            {
                "mediaType": oci.DOCKER_LAYER,
                "digest": digest,
                "size": 46912000,
                "annotations": {
                    oci.PREFIX + "blob-digest": digest,
                    oci.PREFIX + "blob-size": "46912000",
                    oci.PREFIX + "version": "0.1.0",
                },
            }
        ],
    }
    given_blob = blob(document, oci.DOCKER_MANIFEST)
    manifest = parse_document(given_blob)
    assert isinstance(manifest, Manifest)
    assert (manifest.digest, manifest.media_type) == (given_blob.digest, oci.DOCKER_MANIFEST)
    assert manifest.config.size == 9164
    (layer,) = overlaybd_layers(manifest, IMAGE)
    assert (layer.digest, layer.size, layer.media_type) == (digest, 46912000, oci.DOCKER_LAYER)
    assert (layer.kind, layer.fs_type) == (LayerKind.NATIVE, "")


@pytest.mark.parametrize(
    "document",
    [
        oci.manifest_of([], mediaType=oci.DOCKER_MANIFEST),
        oci.manifest_of([], mediaType=None),
        oci.manifest_of([], schemaVersion=None),
        oci.manifest_of([], manifests=None, annotations=None),
        oci.manifest_of([], subject={"digest": "x"}, artifactType="application/x", unknown=[1]),
    ],
)
@pytest.mark.parametrize("media_type", ["", oci.OCI_MANIFEST, "application/octet-stream"])
def test_tolerated_manifests(document: bytes, media_type: str) -> None:
    assert parse_manifest(document, media_type).layers == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": None}, "field config is missing"),
        ({"config": []}, "field config is no object"),
        ({"layers": None}, "field layers is missing"),
        ({"layers": {}}, "field layers is no array"),
        ({"layers": [1]}, r"field layers\[0\] is no object"),
        ({"layers": [{}]}, r"layers\[0\]: field digest is missing"),
        ({"schemaVersion": 3}, "schemaVersion is not 2"),
        ({"schemaVersion": True}, "schemaVersion is no integer"),
        ({"schemaVersion": "2"}, "schemaVersion is no integer"),
        ({"mediaType": 1}, "field mediaType is no string"),
        ({"mediaType": oci.OCI_INDEX}, "has the fields of a manifest, but is a"),
        ({"manifests": []}, "has the fields of a manifest and those of an index"),
        ({"annotations": []}, "field annotations is no object"),
        ({"annotations": {"a": 1}}, "field annotations.'a' is no string"),
        ({"annotations": {"a": "\ud800"}}, "field annotations.'a' is no valid text"),
        ({"annotations": {"\udc00": ""}}, r"field annotations \(a key\) is no valid text"),
    ],
)
def test_damaged_manifests(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_document(blob(oci.manifest_of([], **fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digest": 1}, "field digest is no string"),
        ({"digest": "sha256:xyz"}, "field digest is 'sha256:xyz', no digest"),
        ({"digest": "../../etc/passwd"}, "no digest"),
        ({"digest": "sha256:" + "A" * 64}, "no digest"),
        ({"digest": "sha256:" + "a" * 64 + "\n"}, "no digest"),
        ({"size": None}, "field size is missing"),
        ({"size": -1}, "field size is no possible size"),
        ({"size": 1 << 63}, "field size is no possible size"),
        ({"size": 1.0}, "field size is no integer"),
        ({"size": True}, "field size is no integer"),
        ({"mediaType": []}, "field mediaType is no string"),
        ({"platform": "linux"}, "field platform is no object"),
        ({"platform": {"os": 1}}, "platform: field os is no string"),
        ({"platform": {"os": "\x1b[2J", "architecture": "x"}}, "control characters"),
    ],
)
def test_damaged_descriptors(fields: dict[str, Any], message: str) -> None:
    layer = oci.native_layer(DATA) | fields
    with pytest.raises(FormatError, match=message):
        parse_document(blob(oci.manifest_of([layer])))


def test_other_digests_are_unsupported() -> None:
    layer = oci.native_layer(DATA) | {"digest": "sha512:" + "a" * 128}
    with pytest.raises(UnsupportedError, match="digests of kind sha512"):
        parse_document(blob(oci.manifest_of([layer])))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 99999, b'{"a":NaN}'])
def test_not_a_json_object(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_document(blob(data))


def test_a_key_stands_once() -> None:
    digest = oci.digest_of(DATA)
    other = oci.to_json([oci.native_layer(b"other")])
    good = oci.manifest_of([oci.native_layer(DATA)])
    for twice in (
        good.rstrip(b"}\n") + b', "layers": ' + other + b"}",
        good.replace(b'"size": 16', b'"size": 16, "size": 17'),
    ):
        assert json.loads(twice) != json.loads(good)
        with pytest.raises(FormatError, match=r"the key '(layers|size)' stands twice"):
            parse_manifest(twice)
    assert parse_manifest(good).layers[0].digest == digest


def test_too_many_entries() -> None:
    assert len(parse_index([entry("linux/amd64")] * MAX_ENTRIES).entries) == MAX_ENTRIES
    with pytest.raises(FormatError, match="field manifests is too long: 10001 entries"):
        parse_index([{}] * (MAX_ENTRIES + 1))


def test_entries_behind_a_bad_one_cost_nothing() -> None:
    entries = [{}] * 3 + [0]
    with pytest.raises(FormatError, match=r"manifests\[0\]: field digest is missing"):
        parse_index(entries)


def test_too_long() -> None:
    with pytest.raises(FormatError, match="longer than 4194304 bytes"):
        parse_document(blob(oci.manifest_of([]) + b" " * (4 << 20)))


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": []},
        {"fsLayers": [{"blobSum": "sha256:00"}]},
    ],
)
def test_schema_1_is_unsupported(document: Any) -> None:
    with pytest.raises(UnsupportedError, match="schema 1"):
        parse_document(blob(document))


# -- overlaybd layers ----------------------------------------------------------------------------


def test_layers_bottom_first_with_fs_types() -> None:
    given_layers = [
        oci.native_layer(b"0", blob_fs_type="ext4"),
        oci.native_layer(b"1", blob_fs_type="xfs;nouuid,discard;-f"),
        oci.native_layer(b"2", version="9.9-unknown"),
        oci.native_layer(b"3", oci.DOCKER_LAYER + ".gzip"),
    ]
    del given_layers[3]["annotations"][oci.PREFIX + "version"]
    layers = layers_of(*given_layers)
    assert [layer.digest for layer in layers] == [oci.digest_of(b"%d" % n) for n in range(4)]
    assert [layer.fs_type for layer in layers] == ["ext4", "xfs", "", ""]
    assert {layer.kind for layer in layers} == {LayerKind.NATIVE}


def test_acceleration_layer_is_left_out() -> None:
    trace = oci.native_layer(b"trace", acceleration_layer="yes")
    layers = layers_of(oci.native_layer(DATA), trace)
    assert [layer.digest for layer in layers] == [oci.digest_of(DATA)]
    with pytest.raises(UnsupportedError, match=r"layer 0 .* acceleration layer, but not the top"):
        layers_of(trace, oci.native_layer(DATA))
    with pytest.raises(UnsupportedError, match="has no layer with data"):
        layers_of(trace)


def test_plain_image() -> None:
    plain = oci.descriptor(DATA, oci.OCI_LAYER + "+gzip", annotations={"other": "1"})
    manifest = parse_manifest(oci.manifest_of([plain]))
    assert not has_overlaybd_annotations(manifest)
    with pytest.raises(UnsupportedError) as caught:
        overlaybd_layers(manifest, IMAGE)
    assert f"{IMAGE} is a plain OCI image, not an overlaybd image" in str(caught.value)
    assert "hybrid convert" in caught.value.hint


def test_no_layers_at_all() -> None:
    with pytest.raises(UnsupportedError, match="plain OCI image"):
        layers_of()


def test_mixture_names_the_plain_layer() -> None:
    plain = oci.descriptor(b"plain", oci.OCI_LAYER)
    with pytest.raises(UnsupportedError) as caught:
        layers_of(oci.native_layer(DATA), plain)
    assert f"layer 1 ({oci.digest_of(b'plain')}) of {IMAGE} is an ordinary" in str(caught.value)


@pytest.mark.parametrize(
    "annotations",
    [
        {"version": "0.1.0-turbo.ociv1"},
        {"version": "0.1.0-fastoci"},
        {"turbo-oci/target-digest": "sha256:0"},
        {"fastoci/target-media-type": "x"},
    ],
)
def test_turbo_layers_are_named(annotations: dict[str, str]) -> None:
    layers = [oci.native_layer(b"base"), oci.native_layer(DATA, **annotations)]
    manifest = parse_manifest(oci.manifest_of(layers))
    assert [x.kind for x in manifest.layers] == [LayerKind.NATIVE, LayerKind.TURBO]
    with pytest.raises(UnsupportedError, match=r"layer 1 .*TurboOCI layers are not supported yet"):
        overlaybd_layers(manifest, IMAGE)


@pytest.mark.parametrize(
    "annotations", [{"blob_digest": oci.digest_of(b"before")}, {"blob_size": "17"}]
)
def test_recompressed_with_annotations(annotations: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="recompressed") as caught:
        layers_of(oci.native_layer(DATA, **annotations))
    assert "--preserve-digests" in caught.value.hint


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"blob_digest": "md5:0"}, "blob-digest is 'md5:0', no sha256 digest"),
        ({"blob_size": "many"}, "blob-size is 'many', no number"),
        ({"blob_size": "-1"}, "no number"),
        ({"blob_size": "\u0661"}, "no number"),
    ],
)
def test_damaged_annotations(annotations: dict[str, str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        layers_of(oci.native_layer(DATA, **annotations))


@pytest.mark.parametrize("key", ["blob-digest", "blob-size"])
def test_missing_annotation(key: str) -> None:
    layer = oci.native_layer(DATA)
    del layer["annotations"][oci.PREFIX + key]
    with pytest.raises(FormatError, match=f"has no annotation {oci.PREFIX}{key}"):
        layers_of(layer)


def test_a_layer_has_bytes() -> None:
    with pytest.raises(FormatError, match=r"layer 1 .* of registry\.test/app:1 has 0 bytes"):
        layers_of(oci.native_layer(DATA), oci.native_layer(b""))


def test_number_of_layers() -> None:
    layers = [oci.native_layer(b"%d" % n) for n in range(255)]
    trace = oci.native_layer(b"trace", acceleration_layer="yes")
    assert len(layers_of(*layers, trace)) == 255
    with pytest.raises(UnsupportedError, match="has 256 layers; at most 255"):
        layers_of(*layers, oci.native_layer(DATA))


# -- indexes and platforms -----------------------------------------------------------------------


def entry(text: str | None, **fields: Any) -> Any:
    value = oci.descriptor(str(text).encode(), oci.OCI_MANIFEST)
    if text is not None:
        names = ("os", "architecture", "variant")
        value["platform"] = dict(zip(names, text.split("/"), strict=False))
    return value | fields


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v1"], "linux/amd64/v1"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v4", "linux/amd64/v2"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/386", "linux/amd64/v2"], "linux/386"),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm64/v9", ["linux/arm64"], "linux/arm64"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], "linux/arm/v5"),
        ("linux/arm64", [None, "linux/amd64"], None),
        ("linux/amd64", [None, "linux/amd64"], "linux/amd64"),
    ],
)
def test_best_platform(wanted: str, offered: list[str | None], chosen: str | None) -> None:
    index = parse_index([entry(text) for text in offered])
    best = select_platform(index, parse_platform(wanted))
    assert best.digest == oci.digest_of(str(chosen).encode())


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64/v2", "windows/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/386", ["linux/amd64"]),
        ("linux/arm64", ["linux/arm64/v9"]),
    ],
)
def test_no_platform_fits(wanted: str, offered: list[str]) -> None:
    with pytest.raises(NotFoundError) as caught:
        select_platform(parse_index([entry(text) for text in offered]), parse_platform(wanted))
    assert wanted in str(caught.value)
    for text in offered:
        assert text in caught.value.hint


def test_attestations_are_passed_over() -> None:
    note = {"vnd.docker.reference.type": "attestation-manifest"}
    entries = [
        entry("linux/amd64", annotations=note),
        entry("unknown/unknown"),
        entry(None, annotations=note),
    ]
    with pytest.raises(NotFoundError, match="it has no images at all"):
        select_platform(parse_index(entries), Platform("linux", "amd64"))
    real = entry("linux/amd64", digest=oci.digest_of(b"real"))
    best = select_platform(parse_index([*entries, real]), Platform("linux", "amd64"))
    assert best.digest == oci.digest_of(b"real")


def test_nested_index() -> None:
    nested = oci.descriptor(b"nested", oci.DOCKER_INDEX)
    index = parse_index([nested], mediaType=oci.DOCKER_INDEX)
    best = select_platform(index, Platform("linux", "amd64"))
    assert best == Descriptor(oci.DOCKER_INDEX, oci.digest_of(b"nested"), 6, {}, None)


def test_index_under_a_wrong_name() -> None:
    with pytest.raises(FormatError, match="has the fields of an index, but is a"):
        parse_index([], mediaType=oci.DOCKER_MANIFEST)


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm64/8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/arm/v5", Platform("linux", "arm", "v5")),
    ],
)
def test_parse_platform(text: str, platform: Platform) -> None:
    assert parse_platform(text) == platform
    assert parse_platform(str(platform)) == platform


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"])
def test_no_platform(text: str) -> None:
    with pytest.raises(UsageError, match="is no platform"):
        parse_platform(text)


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv8l", "linux/arm/v8"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_host_platform(machine: str, text: str) -> None:
    assert str(host_platform(machine)) == text


# -- by their bytes ------------------------------------------------------------------------------

NATIVE = build_blob(b"\0" * 4096, zfile=True)
WRAPPED = {
    "pax tar": NATIVE,
    "plain tar": build_blob(b"\0" * 4096, tar="ustar"),
    "zfile": build_blob(b"\0" * 4096, tar=None),
    "turbo": build_tar(b"x" * 600, "ustar", name=".turbo.ociv1"),
}


@pytest.mark.parametrize("pack", ["", "gzip", "zstd"])
@pytest.mark.parametrize("name", list(WRAPPED))
def test_recognised(name: str, pack: str) -> None:
    data = WRAPPED[name]
    if pack == "gzip":
        data = gzip.compress(data)
    elif pack == "zstd":
        data = zstandard.ZstdCompressor(level=3).compress(data)
    assert looks_like_overlaybd_blob(data[:RECOGNIZE_BYTES])
    assert "recompressed" in str(unannotated_image(IMAGE, data[:RECOGNIZE_BYTES]))


def test_golden_layers_are_recognised() -> None:
    directory = golden.tree() / "img"
    for name in ("L0.lz4.tar", "L1.lsmt", "L1.zstd-64k", "L1.zstd-64k.tar"):
        data = (directory / name).read_bytes()
        assert looks_like_overlaybd_blob(data[:2048]), name
        assert looks_like_overlaybd_blob(gzip.compress(data)[:RECOGNIZE_BYTES]), name
        packed = zstandard.ZstdCompressor(level=19).compress(data)
        assert looks_like_overlaybd_blob(packed[:RECOGNIZE_BYTES]), name


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\x1f\x8b\x08\x00" + b"\xff" * 100,
        b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
        build_tar(b"#!/bin/sh\n", "ustar", name="bin/sh"),
        gzip.compress(build_tar(b"#!/bin/sh\n", "ustar", name="bin/sh")),
        # The name alone, without a tar header around it.
        b"overlaybd.commit" + b"\0" * 2000,
    ],
)
def test_not_recognised(data: bytes) -> None:
    assert not looks_like_overlaybd_blob(data)
    assert "plain OCI image" in str(unannotated_image(IMAGE, data))


@pytest.mark.parametrize(
    ("pack", "unpack"), [(gzip.compress, _gunzip_head), (zstandard.compress, _unzstd_head)]
)
def test_bombs_stay_small(pack: Any, unpack: Any) -> None:
    bomb = pack(b"\0" * (16 << 20))
    assert len(bomb) < RECOGNIZE_BYTES
    assert unpack(bomb) == b"\0" * 2048
    assert not looks_like_overlaybd_blob(bomb)


# -- whatever a registry may answer --------------------------------------------------------------

KEYS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"]
KEYS += ["digest", "size", "annotations", "platform", "os", "architecture", "variant"]
KEYS += [oci.PREFIX + key for key in ("version", "blob-digest", "blob-size", "acceleration-layer")]
VALUES = ["yes", "linux", "amd64", oci.digest_of(DATA), "sha512:00", "16", oci.OCI_INDEX]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)


def use(document: ManifestBlob) -> None:
    parsed = parse_document(document)
    if isinstance(parsed, Index):
        select_platform(parsed, Platform("linux", "amd64"))
    else:
        layers = overlaybd_layers(parsed, IMAGE)
        assert 0 < len(layers) <= 255
        assert all(layer.kind is LayerKind.NATIVE for layer in layers)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(value=json_values | st.binary(max_size=30))
def test_any_document_is_understood_or_refused(value: Any) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    message = ""
    try:
        use(blob(data, oci.OCI_MANIFEST))
    except HybridError as error:
        message = str(error)
    assert "\n" not in message
    message.encode()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_manifests(data: st.DataObject) -> None:
    """One value anywhere in a good manifest or index becomes something else."""
    good = json.loads(oci.manifest_of([oci.native_layer(DATA), oci.native_layer(b"2")]))
    if data.draw(st.booleans()):
        good = {"schemaVersion": 2, "manifests": [entry("linux/amd64"), entry("linux/arm/v7")]}
    node: Any = good
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(2)))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(json_values)
    message = ""
    try:
        use(blob(good))
    except HybridError as error:
        message = str(error)
    assert "\n" not in message


@settings(derandomize=True, max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x1f\x8b\x08\0", b"(\xb5/\xfd"]))
def test_any_bytes_are_judged(data: bytes, head: bytes) -> None:
    assert looks_like_overlaybd_blob(head + data) in (True, False)
