"""The index of a layout with one entry changed: the others stay as they were."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import oci

from hybrid.build.contract import manifest_blob
from hybrid.build.layout_index import new_entry, with_entry
from hybrid.core.manifest import MAX_DOCUMENT_BYTES, parse_layout_index
from hybrid.core.platforms import Platform
from hybrid.errors import FormatError, HybridError

MANIFEST = manifest_blob(b'{"some": "manifest"}', oci.OCI_MANIFEST)
OTHER = manifest_blob(b'{"other": "manifest"}', oci.DOCKER_MANIFEST)


def test_a_new_index() -> None:
    data = with_entry(None, new_entry(MANIFEST, "v1", Platform("linux", "arm", "v7")), "new")
    assert json.loads(data) == {
        "schemaVersion": 2,
        "mediaType": oci.OCI_INDEX,
        "manifests": [
            {
                "mediaType": oci.OCI_MANIFEST,
                "digest": MANIFEST.digest,
                "size": len(MANIFEST.data),
                "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
                "annotations": {oci.REF_NAME: "v1"},
            }
        ],
    }


def test_a_tag_moves_and_all_else_stays() -> None:
    mine = {"digest": OTHER.digest, "size": 1, "annotations": {oci.REF_NAME: "v1", "x": "y"}}
    theirs = {"digest": OTHER.digest, "size": 1, "odd": [1, 2], "annotations": {"a": "b"}}
    before = {"schemaVersion": 2, "annotations": {"p": "q"}, "manifests": [theirs, mine]}
    entry = new_entry(MANIFEST, "v1", None)
    after = json.loads(with_entry(oci.to_json(before), entry, "index"))
    assert after == before | {"manifests": [theirs, entry]}


def test_without_a_tag_an_image_is_listed_once() -> None:
    entry = new_entry(MANIFEST, "", None)
    tagged = new_entry(MANIFEST, "v1", None)
    data = with_entry(with_entry(with_entry(None, tagged, "x"), entry, "x"), entry, "x")
    assert json.loads(data)["manifests"] == [tagged, entry]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"manifests": 5}', b'{"manifests": [5]}', b'{"manifests": {"a": 1}}'],
)
def test_damaged_indexes(data: bytes) -> None:
    with pytest.raises(FormatError, match="the index"):
        with_entry(data, new_entry(MANIFEST, "v1", None), "the index")


def test_it_may_not_become_too_long() -> None:
    before = oci.to_json({"x": "y" * (MAX_DOCUMENT_BYTES - 100), "manifests": []})
    with pytest.raises(FormatError, match="longer than"):
        with_entry(before, new_entry(MANIFEST, "v1", None), "index")


names = st.sampled_from(["manifests", "annotations", oci.REF_NAME, "digest", "x"])
json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(names, json_values, max_size=3))
def test_any_json_gives_an_index_with_the_entry_or_an_error(value: dict[str, object]) -> None:
    entry = new_entry(MANIFEST, "v1", None)
    try:
        data = with_entry(json.dumps(value).encode(), entry, "index")
    except HybridError:
        return
    assert json.loads(data)["manifests"][-1] == entry


@given(st.lists(st.tuples(st.sampled_from([MANIFEST, OTHER]), st.sampled_from(["", "a", "b"]))))
def test_each_tag_names_what_it_was_given_last(steps: list) -> None:  # type: ignore[type-arg]
    data = None
    expected = {}
    for manifest, tag in steps:
        data = with_entry(data, new_entry(manifest, tag, None), "index")
        expected[tag or manifest.digest] = manifest.digest
    if data is not None:
        found = {
            entry.annotations.get(oci.REF_NAME) or entry.digest: entry.digest
            for entry in parse_layout_index(data, "index")
        }
        assert found == expected
