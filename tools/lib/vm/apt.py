"""Fetching the package of the guest's kernel. apt checks that Debian signed it."""

from __future__ import annotations

import platform
from pathlib import Path

from vm.errors import VmError
from vm.programs import run, say

_PACKAGE = "linux-image-amd64"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DOWNLOAD_SECONDS = 900
_QUERY_SECONDS = 60


def fetch_kernel(work: Path) -> Path:
    """The package, below ``work``: of the backports (6.12), else of the release itself (6.1)."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    targets = ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE)"]
    uri = archive_uri(run(targets, _QUERY_SECONDS).decode(), codename)
    try:
        return _download(work / "backports", uri, f"{codename}-backports")
    except VmError as error:
        say(f"no kernel from {codename}-backports ({error}): taking that of {codename}")
        return _download(work / "stable", uri, codename)


def archive_uri(targets: str, codename: str) -> str:
    """The archive that apt has this release from. ``targets``: lines of a URI and a release."""
    for line in targets.splitlines():
        uri, _, release = line.partition(" ")
        if release == codename:
            return uri
    raise VmError(f"no kernel: apt has no source for {codename or 'the release of this machine'}")


def _download(state: Path, uri: str, suite: str) -> Path:
    """Download the kernel of one suite. The system's sources and lists stay as they are."""
    for name in ("lists/partial", "cache/archives/partial", "sources"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources/kernel.sources").write_text(source_text(uri, suite))
    options = _private_state(state)
    run(["apt-get", *options, "-qq", "update"], _DOWNLOAD_SECONDS)
    depends = run(["apt-cache", *options, "depends", _PACKAGE], _QUERY_SECONDS).decode()
    download = ["apt-get", *options, "-qq", "download", image_package(depends)]
    run(download, _DOWNLOAD_SECONDS, directory=state)
    return next(state.glob("*.deb"))


def source_text(uri: str, suite: str) -> str:
    """A source for apt (man: sources.list(5), deb822)."""
    lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}", "Components: main"]
    lines.append("Architectures: amd64")
    if _KEYRING.exists():
        lines.append(f"Signed-By: {_KEYRING}")
    return "\n".join(lines) + "\n"


def image_package(depends: str) -> str:
    """The package of the kernel itself, in what apt-cache tells of the package that follows it."""
    for line in depends.splitlines():
        kind, _, name = line.strip().partition(" ")
        if kind == "Depends:" and name.startswith("linux-image-"):
            return name
    raise VmError(f"{_PACKAGE} names no kernel")


def _private_state(state: Path) -> list[str]:
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": state / "sources",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        # apt's own user may not go where the cache is.
        "APT::Sandbox::User": "root",
        # An archive that cannot be had is an error here, not a warning.
        "APT::Update::Error-Mode": "any",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 30,
        "Acquire::https::Timeout": 30,
        "Acquire::Languages": "none",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
