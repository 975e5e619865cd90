"""IMAGE arguments: every form, every refusal."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.core.reference import (
    ArchiveReference,
    ConfigReference,
    LayoutReference,
    RegistryReference,
    is_digest,
    parse_blob_url,
    parse_image,
)
from hybrid.errors import ConfigError, UsageError

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis", ("docker.io", "library/redis", None, None)),
        ("team/app:v1", ("docker.io", "team/app", "v1", None)),
        ("docker.io/redis", ("docker.io", "library/redis", None, None)),
        ("index.docker.io/a/b", ("docker.io", "a/b", None, None)),
        ("localhost/app", ("localhost", "app", None, None)),
        ("localhost:5000/app:1.0", ("localhost:5000", "app", "1.0", None)),
        ("docker://127.0.0.1:5000/a/b/c", ("127.0.0.1:5000", "a/b/c", None, None)),
        ("[::1]:5000/app", ("[::1]:5000", "app", None, None)),
        ("Reg.Example.com/a__b/c--d.e", ("reg.example.com", "a__b/c--d.e", None, None)),
        (f"reg.example.com/app@{DIGEST}", ("reg.example.com", "app", None, DIGEST)),
        (f"reg.example.com/app:v1@{DIGEST}", ("reg.example.com", "app", "v1", DIGEST)),
        ("a" * 63 + ".x/app", ("a" * 63 + ".x", "app", None, None)),
        ("app:" + "t" * 128, ("docker.io", "library/app", "t" * 128, None)),
    ],
)
def test_registry_references(text: str, expected: tuple[str, str, str | None, str | None]) -> None:
    assert parse_image(text) == RegistryReference(*expected)


def test_properties_of_a_registry_reference() -> None:
    assert RegistryReference("docker.io", "library/redis").api_host == "registry-1.docker.io"
    assert RegistryReference("reg:5000", "a").api_host == "reg:5000"
    assert RegistryReference("h.x", "a").reference == "latest"
    assert RegistryReference("h.x", "a", "v1").reference == "v1"
    assert RegistryReference("h.x", "a", "v1", DIGEST).reference == DIGEST
    assert str(RegistryReference("h.x", "a", "v1", DIGEST)) == f"h.x/a:v1@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "directory", "tag"),
    [
        ("oci:dir", "dir", None),
        ("oci:/a/b:v1", "/a/b", "v1"),
        ("oci:dir:docker.io/library/x:latest", "dir", "docker.io/library/x:latest"),
        (f"oci:dir@{DIGEST}", "dir", DIGEST),
        (f"oci:dir:v1@{DIGEST}", "dir", DIGEST),
        ("oci:dir.json", "dir.json", None),
    ],
)
def test_layout_references(text: str, directory: str, tag: str | None) -> None:
    assert parse_image(text) == LayoutReference(Path(directory), tag)


def test_a_layout_reference_prints_as_it_was_written() -> None:
    for text in ("oci:dir", "oci:dir:v1", f"oci:dir@{DIGEST}"):
        assert str(parse_image(text)) == text


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("docker-archive:a.tar", "a.tar", None),
        ("docker-archive:/a/b.tar:app:v1", "/a/b.tar", "app:v1"),
        ("docker-archive:a.json:example.com:5000/x/app:v1", "a.json", "example.com:5000/x/app:v1"),
    ],
)
def test_archive_references(text: str, path: str, tag: str | None) -> None:
    assert parse_image(text) == ArchiveReference(Path(path), tag)
    assert str(parse_image(text)) == text


@pytest.mark.parametrize("text", ["/a/config", "./x", "../x", "config.v1.json", "a:b.json"])
def test_config_references(text: str) -> None:
    assert parse_image(text) == ConfigReference(Path(text))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (" redis", "white space"),
        ("re\ndis", "control characters"),
        ("App", "capital letters"),
        ("app:", "no tag"),
        ("app:.bad", "no tag"),
        ("app:" + "t" * 129, "no tag"),
        ("app@sha256:12", "no digest"),
        ("app@sha512:" + "a" * 128, "no digest"),
        ("app@" + DIGEST.upper(), "no digest"),
        ("ho_st.x/app", "no host name"),
        ("a" * 64 + ".x/app", "no host name"),
        ("reg:0/app", "no port number"),
        ("reg:65536/app", "no port number"),
        ("reg.x//app", "no repository name"),
        ("reg.x/app/", "no repository name"),
        ("docker.io/", "no repository name"),
        ("reg.x/../app", "no repository name"),
        ("h.x/" + "a" * 252, "255"),
        ("https://reg.x/app", "https"),
        ("docker://", "no repository name"),
        ("docker-archive:", "file is missing"),
        ("docker-archive::v1", "file is missing"),
        ("docker-archive:a.tar:", "no tag"),
        ("oci:", "directory is missing"),
        ("oci::v1", "directory is missing"),
        ("oci:dir:", "no tag"),
        ("oci:dir:/x", "no tag"),
        ("oci:dir@sha256:1", "no digest"),
    ],
)
def test_refusals_name_what_is_wrong(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_image(text)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
@settings(derandomize=True, max_examples=300)
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        reference = parse_image(text)
    except UsageError:
        return
    # A path loses its "./" when it is printed; the others are understood as the same again.
    assert isinstance(reference, ConfigReference) or parse_image(str(reference)) == reference


def test_blob_urls() -> None:
    assert parse_blob_url("https://reg.x:5000/v2/a/b/blobs") == (
        "https",
        RegistryReference("reg.x:5000", "a/b"),
    )
    assert parse_blob_url("http://127.0.0.1/v2/a/blobs/")[0] == "http"
    assert parse_blob_url("https://h.x/v2/blobs/blobs")[1].repository == "blobs"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "reg.x/v2/a/blobs",
        "ftp://reg.x/v2/a/blobs",
        "https://reg.x/a/blobs",
        "https://reg.x/v2/a",
        "https://reg.x/v2/A/blobs",
        "https://user:pw@reg.x/v2/a/blobs",
        "https://reg.x/v2/a/blobs?x=1",
        "https://[::1/v2/a/blobs",
        "https:///v2/a/blobs",
        "https://user:hunter2@reg.x/v2/a/blobs",
        "https://user:hun#ter2@reg.x/v2/a/blobs",
        "https://hunter2:a@[::1/v2/a/blobs",
        "https://reg.x/v2/a/blobs?token=hunter2",
        "https://reg.x/v2/Hunter2/blobs",
        "s3://hunter2@reg.x/v2/a/blobs",
    ],
)
def test_bad_blob_urls(url: str) -> None:
    """Nothing of such a URL is repeated: any part of it may be a password."""
    with pytest.raises(ConfigError, match="repoBlobUrl") as caught:
        parse_blob_url(url)
    error = caught.value
    assert "hun" not in str(error).lower()
    # -v shows what is chained as well.
    assert error.__context__ is None or error.__suppress_context__


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST + "0")
    assert not is_digest(DIGEST + "\n")
