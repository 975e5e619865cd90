"""The global configuration: one file for all mounts, in the format of ``overlaybd.json``.

Spec: image-config 2. The older keys count only where the newer object names no log file or no
cache type, as in overlaybd; what is ignored for that reason is named in a warning.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hybrid.config.rows import (
    Kind,
    Values,
    check_object,
    read_json_object,
    require_kind,
)
from hybrid.config.settings import GIB, GLOBAL_ROWS, REGISTRY_HOST_ROWS
from hybrid.errors import ConfigError, NotFoundError

logger = logging.getLogger("hybrid.config")

CONFIG_VARIABLE = "HYBRID_CONFIG"
OVERLAYBD_CONFIG = Path("/etc/overlaybd/overlaybd.json")
SYSTEM_CONFIGS = (Path("/etc/hybrid/hybrid.json"), OVERLAYBD_CONFIG)
"""Looked for in this order if no file was named."""
CACHE_NAME = "hybrid"
"""Our directory inside ``cacheDir``: overlaybd may use the same one, with other files in it."""
SYSTEM_CACHE_DIRECTORY = Path("/var/cache") / CACHE_NAME
SMALLEST_REFILL_BYTES = 65536
"""What the cache keeps is counted in such chunks."""

DEFAULT_CREDENTIAL_FILE = Path("/opt/overlaybd/cred.json")

_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOG_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


@dataclass(frozen=True)
class CredentialConfig:
    """Where overlaybd's own credentials come from. Times in seconds. Spec: image-config 5."""

    mode: str = ""
    """"" (``file`` below), ``file``, ``http``, ``https`` or ``uds`` (all at ``path``)."""
    path: str = ""
    """File name (absolute), URL or socket name (absolute), by mode."""
    timeout_seconds: float = 1.0
    """For the credential service (modes http, https, uds)."""
    file: Path = DEFAULT_CREDENTIAL_FILE
    """For mode "": may be missing."""
    client_cert_path: Path | None = None
    client_key_path: Path | None = None
    server_ca_path: Path | None = None
    """For mode https: the CA of the service; without it the system's CAs are used."""
    helper_seconds: float = 5.0
    """Longest run of a ``docker-credential-*`` program; no setting of a file. Less than the time
    that a manifest may take, or a program that hangs would never be named."""


@dataclass(frozen=True)
class RegistryHost:
    """Exceptions for one registry."""

    insecure: bool = False
    """Do not verify the certificate, and fall back to plain HTTP if there is no TLS at all."""
    plain_http: bool = False
    """Talk plain HTTP, never TLS."""
    ca_file: Path | None = None
    """PEM file with CAs that are trusted for this host besides those of the system."""


@dataclass(frozen=True)
class GlobalConfig:
    """What holds for all mounts. Paths are absolute. Sizes are bytes, times seconds."""

    file: Path | None
    """The file that was read; None: built-in defaults."""
    log_level: int
    """Of the mount's log, as ``logging`` numbers it."""
    log_path: Path | None
    """None: a log file for each mount."""
    cache_dir: Path
    cache_limit_bytes: int
    refill_bytes: int
    """A power of two, at least SMALLEST_REFILL_BYTES."""
    credentials: CredentialConfig
    client_cert_file: Path | None
    client_key_file: Path | None
    user_agent: str
    """Empty: the client's own."""
    connect_seconds: float
    read_seconds: float
    retry_seconds: float
    registries: Mapping[str, RegistryHost] = field(default_factory=dict)
    """By ``host`` or ``host:port``, in lower case."""


def load_global_config(path: Path | None = None) -> GlobalConfig:
    """Read the named file, else $HYBRID_CONFIG, else the first system file there is, else defaults.

    Raises ConfigError (with file and key), or PermissionNeededError. A named file must exist.
    """
    named = path or _named_in_environment()
    if named is not None:
        try:
            return _interpret(_read(named), system=False)
        except NotFoundError as error:
            hint = "" if path else f"{CONFIG_VARIABLE} names it"
            raise ConfigError(error.message, hint=hint) from error
    for candidate in SYSTEM_CONFIGS:
        try:
            return _interpret(_read(candidate), system=True)
        except NotFoundError:
            continue
    return _interpret(Values(None, GLOBAL_ROWS, {}), system=False)


def _named_in_environment() -> Path | None:
    text = os.environ.get(CONFIG_VARIABLE, "")
    return Path(text) if text else None


def _read(path: Path) -> Values:
    return Values(path, GLOBAL_ROWS, check_object(path, read_json_object(path), GLOBAL_ROWS))


def _interpret(values: Values, *, system: bool) -> GlobalConfig:
    _report_what_is_not_done(values)
    level_key, path_key = _log_keys(values)
    directory, limit_bytes = _cache(values, system)
    return GlobalConfig(
        file=values.file,
        log_level=_LOG_LEVELS[values.integer(level_key)],
        log_path=values.path(path_key),
        cache_dir=directory,
        cache_limit_bytes=limit_bytes,
        refill_bytes=_refill_bytes(values),
        credentials=_credentials(values),
        client_cert_file=values.path("certConfig.certFile"),
        client_key_file=values.path("certConfig.keyFile"),
        user_agent=values.text("userAgent"),
        connect_seconds=values.number("registry.connectTimeout"),
        read_seconds=values.number("registry.readTimeout"),
        retry_seconds=values.number("registry.retryBudget"),
        registries=_registries(values),
    )


def _report_what_is_not_done(values: Values) -> None:
    # overlaybd's own file was not written for hybrid: that its wishes are for another program is
    # no news on each mount.
    level = logging.DEBUG if values.file == OVERLAYBD_CONFIG else logging.WARNING
    for row in GLOBAL_ROWS:
        if row.applies or row.key not in values:
            continue
        if row.not_done and values.flag(row.key):
            logger.log(level, "%s: %s: %s yet", values.file, row.key, row.not_done)
        else:
            logger.debug("%s: %s has no effect in hybrid", values.file, row.key)


def _log_keys(values: Values) -> tuple[str, str]:
    if values.text("logConfig.logPath"):
        return "logConfig.logLevel", "logConfig.logPath"
    _warn_ignored(values, "logConfig.logPath", ("logConfig.logLevel",))
    return "logLevel", "logPath"


def _cache(values: Values, system: bool) -> tuple[Path, int]:
    keys = ("cacheConfig.cacheType", "cacheConfig.cacheDir", "cacheConfig.cacheSizeGB")
    if not values.text(keys[0]):
        _warn_ignored(values, keys[0], keys[1:])
        keys = ("cacheType", "registryCacheDir", "registryCacheSizeGB")
    cache_type, directory = values.text(keys[0]), values.path(keys[1])
    if cache_type not in ("", "file"):
        message = "%s: %s: there is no %s cache in hybrid, the file cache is used"
        logger.warning(message, values.file, keys[0], cache_type)
    return _cache_directory(directory, system), int(values.number(keys[2]) * GIB)


def _warn_ignored(values: Values, unset: str, ignored: tuple[str, ...]) -> None:
    for key in ignored:
        if key in values:
            logger.warning("%s: %s ignored, as %s is not set", values.file, key, unset)


def _cache_directory(configured: Path | None, system: bool) -> Path:
    """The cache's directory. A system-wide one that this user cannot write to is not for him."""
    if configured is not None:
        directory = configured / CACHE_NAME
        if not system or os.geteuid() == 0 or _is_writable(directory):
            return directory
        logger.debug("%s cannot be written by this user", directory)
    if os.geteuid() == 0:
        return SYSTEM_CACHE_DIRECTORY
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path there is to be ignored.
    root = Path(base) if base.startswith("/") else _home() / ".cache"
    return root / CACHE_NAME


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(
            "no home directory, so no place for the cache", hint="set XDG_CACHE_HOME"
        ) from error


def _is_writable(directory: Path) -> bool:
    existing = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    return os.access(existing, os.W_OK | os.X_OK)


def _refill_bytes(values: Values) -> int:
    key = "cacheConfig.refillSize"
    size = values.integer(key)
    if size & (size - 1):
        values.refuse(key, f"{size} is no power of two")
    return max(size, SMALLEST_REFILL_BYTES)


def _credentials(values: Values) -> CredentialConfig:
    return CredentialConfig(
        mode=values.text("credentialConfig.mode"),
        path=_credential_path(values),
        timeout_seconds=values.number("credentialConfig.timeout"),
        file=values.path("credentialFilePath") or DEFAULT_CREDENTIAL_FILE,
        client_cert_path=values.path("credentialConfig.client_cert_path"),
        client_key_path=values.path("credentialConfig.client_key_path"),
        server_ca_path=values.path("credentialConfig.server_ca_path"),
    )


def _credential_path(values: Values) -> str:
    key = "credentialConfig.path"
    mode, path = values.text("credentialConfig.mode"), values.text(key)
    if not mode:
        return path
    if not path:
        values.refuse(key, f"missing, and mode {mode!r} needs it")
    if mode in ("file", "uds"):
        return str(values.path(key))
    scheme = _SCHEME.match(path)
    if scheme is None:
        return f"{mode}://{path}"
    if scheme[1].lower() != mode:
        # The URL is not shown: there can be a password or a key in it.
        values.refuse(key, f"it begins with {scheme[0]}, but mode {mode!r} needs {mode}://")
    return f"{mode}://{path[scheme.end() :]}"


def _registries(values: Values) -> Mapping[str, RegistryHost]:
    hosts: dict[str, RegistryHost] = {}
    for name, item in values.mapping("registries").items():
        key = f"registries.{ascii(name)[1:-1]}"
        if _HOST.fullmatch(name) is None:
            values.refuse(key, "this is no host name", "write HOST or HOST:PORT, without https://")
        if name.lower() in hosts:
            values.refuse(key, "this host stands there twice", "capital letters make no difference")
        hosts[name.lower()] = _registry_host(values, key, item)
    return MappingProxyType(hosts)


def _registry_host(values: Values, key: str, item: Any) -> RegistryHost:
    file = values.file or Path()
    require_kind(file, key, item, Kind.OBJECT)
    found = check_object(file, item, REGISTRY_HOST_ROWS, place=f"{key}.")
    host = Values(file, REGISTRY_HOST_ROWS, found, place=f"{key}.")
    return RegistryHost(
        insecure=host.flag("insecure"),
        plain_http=host.flag("plainHttp"),
        ca_file=host.path("caFile"),
    )
