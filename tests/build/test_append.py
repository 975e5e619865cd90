"""Images with one more layer: manifests and configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import oci

from hybrid.build.append import Appended, NewLayer, append_layer
from hybrid.core.manifest import Manifest, parse_document
from hybrid.core.reference import ManifestBlob
from hybrid.errors import FormatError, UnsupportedError

NEW = NewLayer("sha256:" + "ab" * 32, 4096, "ext4")
BLOBS = [b"bottom", b"top"]
TRACE = oci.native_layer(b"trace", acceleration_layer="yes")


def appended(
    layers: list[oci.Json],
    config: dict[str, Any] | bytes | None = None,
    *,
    layer: NewLayer = NEW,
    message: str = "",
    created: str = "",
    **fields: Any,
) -> tuple[Appended, oci.Json, oci.Json]:
    """What comes out, and the two documents in it."""
    raw = oci.to_json(config) if isinstance(config, dict) else config
    raw = oci.image_config(BLOBS) if raw is None else raw
    data = oci.manifest_of(layers, raw, **fields)
    base = parse_document(ManifestBlob(data, "", oci.digest_of(data)))
    assert isinstance(base, Manifest)
    found = append_layer(base, data, raw, layer, message=message, created=created)
    return found, json.loads(found.manifest), json.loads(found.config)


def layers_of(media_type: str = oci.OCI_LAYER) -> list[oci.Json]:
    return [oci.native_layer(blob, media_type) for blob in BLOBS]


def test_a_layer_is_put_on_top() -> None:
    found, manifest, config = appended(layers_of())
    assert manifest["layers"][:2] == layers_of()
    assert manifest["layers"][2] == {
        "mediaType": oci.OCI_LAYER,
        "digest": NEW.digest,
        "size": NEW.size,
        "annotations": {
            oci.PREFIX + "blob-digest": NEW.digest,
            oci.PREFIX + "blob-size": "4096",
            oci.PREFIX + "version": "0.1.0",
            oci.PREFIX + "blob-fs-type": "ext4",
        },
    }
    assert config["rootfs"]["diff_ids"] == [*map(oci.digest_of, BLOBS), NEW.digest]
    assert manifest["config"] == {
        "mediaType": oci.OCI_CONFIG,
        "digest": oci.digest_of(found.config),
        "size": len(found.config),
    }
    assert found.config_digest == oci.digest_of(found.config)
    assert [layer.digest for layer in found.kept] == [*map(oci.digest_of, BLOBS)]
    assert found.dropped is None
    again = parse_document(ManifestBlob(found.manifest, "", oci.digest_of(found.manifest)))
    assert isinstance(again, Manifest)
    assert again.layers[2].fs_type == "ext4"


def test_what_is_not_known_is_not_said() -> None:
    _, manifest, config = appended(layers_of(), layer=NewLayer(NEW.digest, 1))
    assert oci.PREFIX + "blob-fs-type" not in manifest["layers"][2]["annotations"]
    assert config["history"] == [{"created_by": "hybrid commit"}]


def test_all_else_stays() -> None:
    config = {
        "created": "2020-01-02T03:04:05Z",
        "author": "Žofie",
        "config": {"Env": ["A=1"], "Cmd": ["sh"], "Odd": {"x": [1, 2.5, None, 10**30]}},
        "history": [{"created_by": "before", "empty_layer": True}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:1", "sha256:2"], "extra": True},
        "architecture": "arm64",
    }
    fields = {"annotations": {"a": "b"}, "artifactType": "application/x", "other": [1]}
    _, manifest, new = appended(layers_of(), config, message="why", **fields)
    assert list(new) == list(config), "in the same order"
    for name in ("created", "author", "config", "os", "architecture"):
        assert new[name] == config[name]
    assert new["rootfs"]["extra"] is True
    assert new["history"] == [
        {"created_by": "before", "empty_layer": True},
        {"created": "2020-01-02T03:04:05Z", "created_by": "hybrid commit", "comment": "why"},
    ]
    for name, value in fields.items():
        assert manifest[name] == value


def test_times_come_from_outside() -> None:
    _, _, config = appended(layers_of(), created="2001-01-01T00:00:00Z")
    assert config["created"] == config["history"][-1]["created"] == "2001-01-01T00:00:00Z"
    assert appended(layers_of())[0] == appended(layers_of())[0]


def test_the_source_of_a_conversion_is_not_that_of_this_image() -> None:
    subject = oci.descriptor(b"x", oci.OCI_MANIFEST)
    _, manifest, _ = appended(layers_of(), subject=subject)
    assert "subject" not in manifest


@pytest.mark.parametrize(
    ("layer_type", "manifest_type", "wanted"),
    [
        (oci.OCI_LAYER, oci.OCI_MANIFEST, oci.OCI_LAYER),
        (oci.DOCKER_LAYER, oci.DOCKER_MANIFEST, oci.DOCKER_LAYER),
        (oci.OCI_LAYER, oci.DOCKER_MANIFEST, oci.OCI_LAYER),
        (oci.DOCKER_LAYER + ".gzip", oci.OCI_MANIFEST, oci.DOCKER_LAYER),
        ("application/x-strange", oci.DOCKER_MANIFEST, oci.DOCKER_LAYER),
        ("application/x-strange", "", oci.OCI_LAYER),
    ],
)
def test_media_types(layer_type: str, manifest_type: str, wanted: str) -> None:
    found, manifest, _ = appended(layers_of(layer_type), mediaType=manifest_type)
    assert manifest["layers"][2]["mediaType"] == wanted
    assert found.media_type == (manifest_type or oci.OCI_MANIFEST)


def test_an_acceleration_layer_is_dropped() -> None:
    config = {
        "history": [{"created_by": "Acceleration Layer"}, {"created_by": "before"}],
        "rootfs": {"type": "layers", "diff_ids": ["1", "2", TRACE["digest"]]},
    }
    found, manifest, new = appended([*layers_of(), TRACE], config)
    assert found.dropped is not None
    assert found.dropped.digest == TRACE["digest"]
    assert [layer["digest"] for layer in manifest["layers"]] == [
        *map(oci.digest_of, BLOBS),
        NEW.digest,
    ]
    assert new["rootfs"]["diff_ids"] == ["1", "2", NEW.digest]
    assert [entry["created_by"] for entry in new["history"]] == ["before", "hybrid commit"]


def test_configs_without_layers_and_history() -> None:
    _, _, config = appended(layers_of(), {})
    assert config["rootfs"] == {"type": "layers", "diff_ids": [NEW.digest]}
    _, _, config = appended(layers_of(), {"history": None, "rootfs": {"diff_ids": []}})
    assert len(config["history"]) == 1


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{", b'{"rootfs": 1}', b'{"rootfs": {"diff_ids": 1}}', b'{"history": {}}'],
)
def test_damaged_configs(config: bytes) -> None:
    with pytest.raises(FormatError, match="config of the image"):
        appended(layers_of(), config)


def test_images_that_take_no_layer() -> None:
    with pytest.raises(UnsupportedError, match="plain OCI image"):
        appended([oci.descriptor(b"x", oci.OCI_LAYER)])
    with pytest.raises(UnsupportedError, match="255 layers"):
        appended([oci.native_layer(str(number).encode()) for number in range(255)])
