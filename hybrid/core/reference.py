"""What IMAGE on the command line means: a registry, a layout or archive on disk, an image config.

PURE: text in, values out. The grammar is that of the OCI distribution specification; which part
of a name is the host follows docker's rule (see ``parse_image``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from hybrid.errors import ConfigError, UsageError

DOCKER_HUB = "docker.io"
DOCKER_HUB_API = "registry-1.docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_CHARACTERS = 255
"""Host, slash and repository together (OCI distribution: clients may limit it to this)."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
"""At most 63 characters (RFC 1035, section 2.3.4)."""
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")
_REF_PART = r"[A-Za-z0-9_]+(?:(?:[-._:@+]|--)[A-Za-z0-9_]+)*"
_LAYOUT_REF = re.compile(rf"{_REF_PART}(?:/{_REF_PART})*")
"""Names in an OCI layout (org.opencontainers.image.ref.name) may be richer than tags."""


@dataclass(frozen=True)
class RegistryReference:
    """An image in a registry. ``host`` is as the user sees it: ``docker.io`` for Docker Hub."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """``host/repository``."""
        return f"{self.host}/{self.repository}"

    @property
    def reference(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def api_host(self) -> str:
        """The host (and port) that answers requests for this image."""
        return api_host(self.host)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True)
class LayoutReference:
    """An image in an OCI layout. ``tag`` is a reference name or a digest; None: the only image."""

    directory: Path
    tag: str | None = None

    def __str__(self) -> str:
        if self.tag is None:
            return f"oci:{self.directory}"
        separator = "@" if is_digest(self.tag) else ":"
        return f"oci:{self.directory}{separator}{self.tag}"


@dataclass(frozen=True)
class ArchiveReference:
    """An image in a file of ``docker save``. ``tag`` is a name in it; None: the only image."""

    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"docker-archive:{self.path}{f':{self.tag}' if self.tag else ''}"


@dataclass(frozen=True)
class ConfigReference:
    """An image config file (``config.v1.json``)."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ManifestBlob:
    """A manifest or index as it was served: its exact bytes, and the digest of these bytes."""

    data: bytes
    media_type: str
    """The Content-Type without parameters; "" if the server sent none."""
    digest: str


ImageReference = RegistryReference | LayoutReference | ArchiveReference | ConfigReference


def api_host(host: str) -> str:
    """The host to talk to for images of ``host``: they differ for Docker Hub."""
    return DOCKER_HUB_API if host == DOCKER_HUB else host


def is_digest(text: str) -> bool:
    """Whether ``text`` is a whole sha256 digest."""
    return _DIGEST.fullmatch(text) is not None


def parse_image(text: str) -> ImageReference:
    """Understand IMAGE, or raise UsageError naming the part that is wrong.

    ``oci:DIR[:TAG]`` and ``oci:DIR@DIGEST`` are layouts, ``docker-archive:FILE[:TAG]`` is a file of
    ``docker save``; a path (``/``, ``./``, ``../``) or
    anything ending in ``.json`` is an image config; all else is in a registry. There, the first
    component is the host if it has a dot or a colon or is ``localhost``; else it is Docker Hub.
    """
    if not text or text != text.strip() or not text.isprintable():
        _refuse(text, "it is empty or has white space around it or control characters in it")
    if text.startswith("oci:"):
        return _parse_layout(text)
    if text.startswith("docker-archive:"):
        return _parse_archive(text)
    if text.startswith("docker://"):
        return _parse_registry(text, text.removeprefix("docker://"))
    if text.startswith(("/", "./", "../")) or text.endswith(".json"):
        return ConfigReference(Path(text))
    if "://" in text:
        _refuse(text, f"the scheme {text.split('://')[0]!r} is not known; only docker:// is")
    return _parse_registry(text, text)


def parse_blob_url(url: str) -> tuple[str, RegistryReference]:
    """Split a ``repoBlobUrl`` (``https://HOST/v2/REPO/blobs``) into scheme and repository.

    Raises ConfigError, as this stands in an image config. Its message has nothing of the URL in
    it, since people write passwords and signatures there. Spec: image-config 1 and 6.
    """
    hint = "it has the form https://HOST/v2/REPOSITORY/blobs"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("repoBlobUrl is no URL", hint=hint) from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError("repoBlobUrl does not begin with http:// or https://", hint=hint)
    if "@" in parts.netloc:
        raise ConfigError("repoBlobUrl has a login in it", hint="logins belong in credential files")
    match = re.fullmatch(r"/v2/(.+)/blobs/*", parts.path)
    if match is None or parts.query or parts.fragment:
        raise ConfigError("repoBlobUrl is not the blobs of a repository", hint=hint)
    try:
        host = _host(url, parts.netloc)
    except UsageError:
        raise ConfigError("repoBlobUrl has no valid host in it", hint=hint) from None
    try:
        return parts.scheme, RegistryReference(host, _repository(url, match[1]))
    except UsageError:
        raise ConfigError(
            "repoBlobUrl has no valid repository name in it", hint="no capital letters, for example"
        ) from None


def _refuse(text: str, reason: str, hint: str = "") -> NoReturn:
    raise UsageError(f"{text!r} is no image: {reason}", hint=hint)


def _parse_layout(text: str) -> LayoutReference:
    rest = text.removeprefix("oci:")
    rest, tag = _split_digest(text, rest)
    # As skopeo does: the first colon ends the directory, since names may have colons in them.
    directory, colon, name = rest.partition(":")
    if not directory:
        _refuse(text, "the directory is missing", "write oci:DIRECTORY[:TAG]")
    if colon and _LAYOUT_REF.fullmatch(name) is None:
        _refuse(text, f"{name!r} is no tag", "the directory of a layout may have no ':' in it")
    return LayoutReference(Path(directory), tag or name or None)


def _parse_archive(text: str) -> ArchiveReference:
    path, colon, tag = text.removeprefix("docker-archive:").partition(":")
    if not path:
        _refuse(text, "the file is missing", "write docker-archive:FILE[:TAG]")
    if colon and _LAYOUT_REF.fullmatch(tag) is None:
        _refuse(text, f"{tag!r} is no tag", "the path of an archive may have no ':' in it")
    return ArchiveReference(Path(path), tag or None)


def _parse_registry(text: str, name: str) -> RegistryReference:
    name, digest = _split_digest(text, name)
    head, slash, tail = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        host, rest = _host(text, head), tail
    else:
        host, rest = DOCKER_HUB, name
    # A colon behind the host can only begin the tag: repositories have none.
    repository, colon, tag = rest.partition(":")
    repository = _repository(text, repository)
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if colon and _TAG.fullmatch(tag) is None:
        _refuse(text, f"{tag!r} is no tag", "at most 128 letters, digits, '_', '.' and '-'")
    if len(host) + 1 + len(repository) > MAX_NAME_CHARACTERS:
        _refuse(text, f"its name is longer than {MAX_NAME_CHARACTERS} characters")
    return RegistryReference(host, repository, tag or None, digest)


def _split_digest(text: str, name: str) -> tuple[str, str | None]:
    rest, at, digest = name.rpartition("@")
    if not at:
        return name, None
    if is_digest(digest):
        return rest, digest
    _refuse(text, f"{digest!r} is no digest", "write @sha256: and 64 digits 0-9 a-f")


def _host(text: str, host: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None:
        _refuse(text, f"{host!r} is no host name")
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:
        _refuse(text, f"{match[1]} is no port number")
    host = host.lower()
    return DOCKER_HUB if host == "index.docker.io" else host


def _repository(text: str, repository: str) -> str:
    if _REPOSITORY.fullmatch(repository) is None:
        hint = "parts of a-z and 0-9, joined by '/', '.', '_' or '-'"
        if repository != repository.lower():
            hint = "capital letters are not allowed in it"
        _refuse(text, f"{repository!r} is no repository name", hint)
    return repository
