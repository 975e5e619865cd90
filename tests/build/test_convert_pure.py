"""What a converted image is called, and its manifest, config and index."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support import oci
from support.plain_images import PlainImage

from hybrid.build.append import compact, redirected
from hybrid.build.convert.options import Options, SourceLayer, chain_id, layer_names
from hybrid.build.convert.planning import SourceImage, check_manifest, parse_source
from hybrid.build.convert.result import ConvertedLayer, new_config, new_index, new_manifest
from hybrid.core.lsmt import is_uuid
from hybrid.core.manifest import Index, Manifest, parse_document
from hybrid.core.reference import ManifestBlob
from hybrid.errors import FormatError, HybridError, UnsupportedError

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
LAYERS = [SourceLayer(A, 1, B), SourceLayer(B, 2, C), SourceLayer(C, 3, A)]
NEW = [ConvertedLayer(digest, size) for digest, size in ((A, 10), (B, 20), (C, 30))]


def blob_of(data: bytes) -> ManifestBlob:
    return ManifestBlob(data, "", oci.digest_of(data))


def source_of(image: PlainImage) -> SourceImage:
    blob = blob_of(image.manifest())
    manifest = parse_document(blob)
    assert isinstance(manifest, Manifest)
    check_manifest(manifest, "image")
    return parse_source(manifest, blob.data, image.config_data(), "image")


def test_chain_ids_are_those_of_the_specification() -> None:
    assert chain_id([]) == ""
    assert chain_id([A]) == A
    assert chain_id([A, B]) == oci.digest_of(f"{A} {B}".encode())
    assert chain_id([A, B, C]) == oci.digest_of(f"{chain_id([A, B])} {C}".encode())


def test_names_of_layers() -> None:
    names = layer_names(LAYERS, Options())
    assert len(names) == 4
    assert len({name.key for name in names}) == len({name.uuid for name in names}) == 4
    assert [name.parent_uuid for name in names] == ["", *[name.uuid for name in names[:3]]]
    assert all(is_uuid(name.uuid) and name.uuid == name.uuid.upper() for name in names)
    # What is below is the same for an image with other layers above.
    assert layer_names(LAYERS[:2], Options()) == names[:3]
    # What a blob depends on changes its key; threads do not.
    assert layer_names(LAYERS, Options(threads=7)) == names
    for options in (Options(compress="zstd"), Options(block_size=8192)):
        others = layer_names(LAYERS, options)
        assert [name.uuid for name in others] == [name.uuid for name in names]
        assert not {name.key for name in others} & {name.key for name in names}
    assert not set(layer_names(LAYERS, Options(size=1 << 30))) & set(names)
    # Other bytes that claim to be the same files were not checked.
    other = layer_names([replace(LAYERS[0], digest=C), *LAYERS[1:]], Options())
    assert other[0] == names[0]
    assert not {name.key for name in other[1:]} & {name.key for name in names}


def test_an_erofs_is_one_layer() -> None:
    (name,) = layer_names(LAYERS, Options(fs="erofs"))
    assert name.parent_uuid == ""
    assert layer_names(LAYERS[:2], Options(fs="erofs"))[0].key != name.key


@pytest.mark.parametrize(("docker", "kind"), [(False, oci.OCI_LAYER), (True, oci.DOCKER_LAYER)])
def test_manifest_and_config(docker: bool, kind: str) -> None:
    image = PlainImage([b"1", b"2"], docker=docker, annotations={"a": "b"})
    source = source_of(image)
    config = new_config(source, NEW, "ext4")
    before, after = json.loads(image.config_data()), json.loads(config)
    assert after.pop("rootfs") == {"type": "layers", "diff_ids": [A, B, C]}
    history = after.pop("history")
    assert history[1:] == before.pop("history")
    assert history[0]["created_by"] == "hybrid convert"
    assert sum(not entry.get("empty_layer") for entry in history) == 3
    before.pop("rootfs")
    assert list(after.items()) == list(before.items())

    made = new_manifest(source, NEW, "ext4", config)
    old, new = json.loads(image.manifest()), json.loads(made.data)
    assert made.digest == oci.digest_of(made.data)
    assert new["mediaType"] == old["mediaType"] == made.media_type
    assert new["annotations"] == {"a": "b"}
    assert new["config"] == old["config"] | {"digest": oci.digest_of(config), "size": len(config)}
    prefix = oci.PREFIX
    assert new["layers"][1] == {
        "mediaType": kind, "digest": B, "size": 20,
        "annotations": {
            f"{prefix}blob-digest": B, f"{prefix}blob-size": "20", f"{prefix}version": "0.1.0",
            f"{prefix}blob-fs-type": "ext4",
        },
    }  # fmt: skip


def test_the_history_of_an_erofs() -> None:
    after = json.loads(new_config(source_of(PlainImage([b"1", b"2"])), NEW[:1], "erofs"))
    assert after["rootfs"]["diff_ids"] == [A]
    assert [entry.get("empty_layer", False) for entry in after["history"]] == [True] * 3 + [False]
    assert after["history"][-1]["created"] == "2020-01-02T03:04:05Z"


def test_no_history_stays_none() -> None:
    image = PlainImage([b"1"], config={"history": None})
    assert json.loads(new_config(source_of(image), NEW[:2], "ext4"))["history"] is None


def test_a_subject_is_not_kept() -> None:
    image = PlainImage([b"1"])
    document = json.loads(image.manifest()) | {"subject": oci.descriptor(b"x", oci.OCI_MANIFEST)}
    source = source_of(image)
    source = replace(source, manifest_data=oci.to_json(document))
    assert "subject" not in json.loads(new_manifest(source, NEW[:2], "ext4", b"{}").data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer_type": oci.OCI_LAYER + "+gzip+encrypted"}, "encrypted"),
        (
            {"layer_type": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
            "distributed",
        ),
        ({"layer_type": "application/vnd.oci.image.layer.nondistributable.v1.tar"}, "distributed"),
        ({"layer_type": "application/vnd.in-toto+json"}, "no layer of files"),
        ({"archives": []}, "no layers"),
        ({"archives": [b"x"] * 255}, "255 layers"),
        ({"diff_ids": [A, B]}, "2 diff_ids"),
        ({"diff_ids": ["sha256:zz"]}, "no sha256 digest"),
        ({"config": {"history": [1]}}, "history"),
    ],
)
def test_what_cannot_be_converted(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((UnsupportedError, FormatError), match=words) as caught:
        source_of(replace(PlainImage([b"1"]), **fields))
    assert "\n" not in str(caught.value)


def test_an_overlaybd_image_needs_no_conversion() -> None:
    manifest = parse_document(blob_of(oci.manifest_of([oci.native_layer(b"x")])))
    assert isinstance(manifest, Manifest)
    with pytest.raises(UnsupportedError, match="already") as caught:
        check_manifest(manifest, "image")
    assert "hybrid copy" in caught.value.hint


def test_an_artifact_is_no_image() -> None:
    data = oci.manifest_of([oci.descriptor(b"x", oci.OCI_LAYER)])
    data = data.replace(oci.OCI_CONFIG.encode(), b"application/vnd.cncf.helm.config.v1+json")
    manifest = parse_document(blob_of(data))
    assert isinstance(manifest, Manifest)
    with pytest.raises(UnsupportedError, match="no container image"):
        check_manifest(manifest, "image")


def test_an_index() -> None:
    entries = [
        oci.descriptor(b"one", oci.OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"},
                       annotations={"x": "y"}),
        oci.descriptor(b"attestation", oci.OCI_MANIFEST,
                       annotations={"vnd.docker.reference.type": "attestation-manifest"}),
    ]  # fmt: skip
    value = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries, "other": [1]}
    blob = blob_of(oci.to_json(value))
    index = parse_document(blob)
    assert isinstance(index, Index)
    new = ManifestBlob(b"new manifest", oci.OCI_MANIFEST, A)
    made = json.loads(new_index(index, blob.data, {entries[0]["digest"]: new}).data)
    assert made["manifests"] == [entries[0] | {"digest": A, "size": 12}]
    assert made["other"] == [1]


def test_errors_are_declared() -> None:
    for broken in ({"rootfs": None}, {"rootfs": {"diff_ids": [7]}}, {"rootfs": {}}):
        with pytest.raises(HybridError):
            source_of(PlainImage([b"1"], config=broken))


def test_what_a_descriptor_embeds_is_not_kept() -> None:
    old = {"mediaType": "m", "digest": "sha256:a", "size": 1, "data": "e30=", "urls": ["http://x"]}
    assert redirected(old | {"annotations": {"a": "b"}}, "sha256:c", 2) == {
        "mediaType": "m", "digest": "sha256:c", "size": 2, "annotations": {"a": "b"},
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "\ud800"])
def test_what_is_no_json_is_an_error(value: object) -> None:
    with pytest.raises(FormatError, match="JSON"):
        compact({"x": value})
