"""Who are we, for a registry? overlaybd's credential file, then Docker's, then Podman's.

Sources are asked in this order and the first that knows the host wins; within one, the entry with
the longest matching prefix wins (``host/team`` before ``host``). All are read anew each time, so
that a ``docker login`` takes effect under a mounted image. Passwords never get into messages.

Spec: image-config 5 (with the weaknesses of section 17 mended).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.config import CredentialConfig
from hybrid.core.credential_helper import ask_helper
from hybrid.core.credential_service import fetch_auths, service_name
from hybrid.core.reference import DOCKER_HUB, DOCKER_HUB_API
from hybrid.errors import ConfigError

logger = logging.getLogger(__name__)

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""What Docker calls its hub in its files and towards its helpers."""
HUB_ALIASES = (DOCKER_HUB, DOCKER_HUB_API, "index.docker.io")
TOKEN_USER = "<token>"
"""The user name by which a helper says that the secret is an identity token."""
MAX_FILE_BYTES = 4 << 20
SERVICE_MODES = ("http", "https", "uds")


@dataclass(frozen=True)
class Login:
    """Name and password, or an OAuth2 identity (refresh) token instead of the password."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


class Credentials:
    """Looks a login up for a host and repository; ``environ`` finds the Docker and Podman files."""

    def __init__(
        self,
        settings: CredentialConfig | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings or CredentialConfig()
        self._environ = os.environ if environ is None else environ

    async def lookup(self, host: str, repository: str) -> Login | None:
        """The login for ``host`` (as in the image's name) or None for anonymous.

        Raises ConfigError (a broken file or helper, named); of a service also AuthError,
        NetworkError, or TransientError if it is worth asking again.
        """
        login = await self._from_overlaybd(host, repository)
        if login is None:
            login = await self._from_docker(host, repository)
        if login is None:
            login = self._from_podman(host, repository)
        return login

    async def _from_overlaybd(self, host: str, repository: str) -> Login | None:
        mode, path = self._settings.mode, self._settings.path
        if mode in SERVICE_MODES:
            auths = await fetch_auths(self._settings, host, repository)
            return match_auths(auths, host, repository, service_name(self._settings))
        if mode not in ("", "file"):
            raise ConfigError(
                f"credentialConfig.mode {mode!r} is not known",
                hint="it is one of file, http, https, uds",
            )
        file = Path(path) if mode else self._settings.file
        document = read_json_object(file, must_exist=mode == "file")
        return match_auths(document.get("auths"), host, repository, str(file))

    async def _from_docker(self, host: str, repository: str) -> Login | None:
        directory = self._environ.get("DOCKER_CONFIG") or self._home(".docker")
        if not directory:
            return None
        file = Path(directory) / "config.json"
        document = read_json_object(file)
        helper = _helper_for(document, host, file)
        if helper:
            login = await _ask_helper(helper, host, file, self._settings.helper_seconds)
            if login is not None:
                return login
        return match_auths(document.get("auths"), host, repository, str(file))

    def _from_podman(self, host: str, repository: str) -> Login | None:
        name = self._environ.get("REGISTRY_AUTH_FILE")
        runtime = self._environ.get("XDG_RUNTIME_DIR")
        if not name and not runtime:
            return None
        file = Path(name) if name else Path(runtime or "") / "containers" / "auth.json"
        document = read_json_object(file, must_exist=bool(name))
        return match_auths(document.get("auths"), host, repository, str(file))

    def _home(self, name: str) -> str:
        home = self._environ.get("HOME")
        return str(Path(home) / name) if home else ""


def read_json_object(path: Path, *, must_exist: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing, or is not ours to read.

    With ``must_exist`` (the user named the file) both are errors. Raises ConfigError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if must_exist:
            raise ConfigError(f"credential file {path}: {error.strerror}") from error
        if isinstance(error, PermissionError):
            logger.info("credential file %s is not readable for this user, ignored", path)
        return {}
    except OSError as error:
        raise ConfigError(f"credential file {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"credential file {path} is longer than {MAX_FILE_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        # The text of a JSONDecodeError has a position but none of the contents.
        raise ConfigError(f"credential file {path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"credential file {path} is not a JSON object")
    return document


def match_auths(auths: object, host: str, repository: str, where: str) -> Login | None:
    """The login of the entry of ``auths`` with the longest key that is a prefix of the name.

    Keys are ``host``, ``host/ns/repo``, with or without scheme and Docker's ``/v1/``.
    """
    if auths is None:
        return None
    if not isinstance(auths, dict):
        raise ConfigError(f"{where}: 'auths' is not an object")
    wanted = f"{_plain_host(host)}/{repository}/"
    best: list[tuple[int, bool, str]] = []
    for key in auths:
        normal = normal_key(key)
        if wanted.startswith(f"{normal}/"):
            best.append((len(normal), key == normal, key))
    for _, _, key in sorted(best, reverse=True):
        login = _entry_login(auths[key], f"{where}: entry {key!r} of 'auths'")
        # Docker writes empty entries for hosts whose secrets are in a helper.
        if login is not None:
            return login
    return None


def normal_key(key: str) -> str:
    """A key of ``auths`` as ``host[:port][/path]``, Docker Hub under its one name."""
    plain = re.sub(r"^https?://", "", key.strip(), flags=re.IGNORECASE).strip("/")
    plain = re.sub(r"/v[12]$", "", plain)
    host, slash, path = plain.partition("/")
    return f"{_plain_host(host)}{slash}{path}"


def _plain_host(host: str) -> str:
    return DOCKER_HUB if host.lower() in HUB_ALIASES else host.lower()


def _entry_login(entry: object, where: str) -> Login | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is not an object")
    fields = {}
    for name in ("auth", "username", "password", "identitytoken"):
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {name!r} is not a string")
        fields[name] = value
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        username, password = _decode_auth(fields["auth"], where)
    if not username and not fields["identitytoken"]:
        return None
    return Login(username, password, fields["identitytoken"])


def _decode_auth(auth: str, where: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        # Not chained: the exception would carry the secret into a traceback.
        raise ConfigError(f"{where}: 'auth' is not base64 of USER:PASSWORD") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise ConfigError(f"{where}: 'auth' has no ':' between user and password")
    return username, password.rstrip("\0")


# -- helper programs -----------------------------------------------------------------------------


def _helper_for(document: dict[str, Any], host: str, file: Path) -> str:
    """The helper's name for this host: its own (credHelpers), or the one for all (credsStore)."""
    helpers = document.get("credHelpers") or {}
    store = document.get("credsStore") or ""
    if not isinstance(helpers, dict) or not isinstance(store, str):
        raise ConfigError(f"{file}: 'credHelpers' is not an object, or 'credsStore' is no string")
    for key, name in helpers.items():
        if normal_key(key) == _plain_host(host):
            store = name
            break
    if store and (not isinstance(store, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", store)):
        raise ConfigError(f"{file}: {store!r} is no name of a credential helper")
    return store


async def _ask_helper(name: str, host: str, file: Path, timeout_seconds: float) -> Login | None:
    server = DOCKER_HUB_KEY if _plain_host(host) == DOCKER_HUB else host
    found = await ask_helper(name, server, file, timeout_seconds)
    if found is None:
        return None
    username, secret = found
    if username == TOKEN_USER:
        return Login("", "", secret)
    return Login(username, secret) if username else None
