"""What a record keeps of the image, so that another server opens the same one."""

import os
from pathlib import Path

import pytest

from hybrid.errors import NotFoundError, UsageError
from hybrid.mount.origin import ImageOrigin

DIGEST = "sha256:" + "5" * 64


def _origin(image: str, config: Path | None = None) -> ImageOrigin:
    return ImageOrigin.of_command(image, "linux/arm64", True, config)


def test_it_survives_being_stored() -> None:
    origin = _origin("registry.example.com/a/b:1", Path("/etc/my.json"))
    stored = origin.to_json()
    assert ImageOrigin.from_json(stored, "") == origin
    assert stored["platform"] == "linux/arm64"
    assert stored["insecure"] is True
    assert stored["config"] == "/etc/my.json"


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("registry.example.com/a/b:1", f"registry.example.com/a/b@{DIGEST}"),
        ("docker://registry.example.com:5000/a/b", f"registry.example.com:5000/a/b@{DIGEST}"),
        (f"registry.example.com/a/b:1@{DIGEST}", f"registry.example.com/a/b@{DIGEST}"),
        ("oci:/images/x:1", f"oci:/images/x@{DIGEST}"),
        ("oci:/images/x", f"oci:/images/x@{DIGEST}"),
        ("/images/config.v1.json", "/images/config.v1.json"),
    ],
)
def test_the_digest_counts_and_not_the_tag_which_may_move(image: str, pinned: str) -> None:
    assert ImageOrigin.from_json(_origin(image).to_json(), DIGEST).image == pinned


def test_paths_mean_the_same_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _origin("oci:layout:1").image == f"oci:{tmp_path}/layout:1"
    assert _origin("some/config.v1.json").image == f"{tmp_path}/some/config.v1.json"
    assert _origin("oci:layout", Path("hybrid.json")).config == f"{tmp_path}/hybrid.json"


def test_a_deleted_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFoundError, match="current directory"):
        _origin("./config.v1.json")


def test_what_names_no_image_is_refused_at_once() -> None:
    with pytest.raises(UsageError):
        _origin("Capital/Letters")


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/first")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setenv("UNRELATED", "kept out")
    origin = _origin("registry.example.com/a/b:1")
    assert "UNRELATED" not in origin.environment
    monkeypatch.setenv("DOCKER_CONFIG", "/second")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    origin.restore_environment()
    assert os.environ["DOCKER_CONFIG"] == "/first"
    assert "HTTPS_PROXY" not in os.environ
    assert os.environ["UNRELATED"] == "kept out"
