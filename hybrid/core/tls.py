"""TLS contexts for registries: the system's CAs, private ones, client certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import certifi

from hybrid.core.registry_settings import RegistrySettings
from hybrid.errors import ConfigError


@dataclass(frozen=True)
class TlsProfile:
    """What makes one TLS context unlike another; hosts with equal profiles share connections."""

    insecure: bool = False
    ca_files: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path | None], ...] = ()
    """Pairs of certificate and key; the key may stand in the certificate's file."""


def profile_for(settings: RegistrySettings, host: str, insecure: bool) -> TlsProfile:
    """The profile of a registry host (``host[:port]``), with what its certs.d directories hold."""
    options = settings.hosts.get(host)
    ca_files = [options.ca_file] if options is not None and options.ca_file is not None else []
    found, own = certs_of(settings, host)
    certs: list[tuple[Path, Path | None]] = []
    if settings.client_cert_file is not None:
        certs.append((settings.client_cert_file, settings.client_key_file))
    return TlsProfile(insecure, (*ca_files, *found), (*certs, *own))


def certs_of(
    settings: RegistrySettings, host: str
) -> tuple[tuple[Path, ...], tuple[tuple[Path, Path | None], ...]]:
    """(CA files, pairs of certificate and key) in the certs.d directories of ``host[:port]``."""
    ca_files: list[Path] = []
    certs: list[tuple[Path, Path | None]] = []
    if host.strip(".") == "":
        # A redirect may name such a host; it is no directory of ours.
        return (), ()
    for directory in settings.certs_directories:
        ca_files += sorted((directory / host).glob("*.crt"))
        for cert in sorted((directory / host).glob("*.cert")):
            certs.append((cert, cert.with_suffix(".key")))
    return tuple(ca_files), tuple(certs)


def make_context(profile: TlsProfile) -> ssl.SSLContext:
    """A client context. OpenSSL itself honours SSL_CERT_FILE and SSL_CERT_DIR.

    Raises ConfigError naming the file that cannot be used.
    """
    named = os.environ.get("SSL_CERT_FILE")
    if named and not os.access(named, os.R_OK):
        # OpenSSL would go on without it, and every certificate would look untrusted.
        raise ConfigError(f"SSL_CERT_FILE names {named}, which cannot be read")
    if profile.insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
        if not _has_system_cas(context):
            _load_ca(context, Path(certifi.where()))
        for file in profile.ca_files:
            _load_ca(context, file)
    for cert, key in profile.client_certs:
        _load_client_cert(context, cert, key)
    return context


def trust_hint(host: str, directories: Iterable[Path]) -> str:
    """What to do about a certificate that is not trusted."""
    first = next(iter(directories), Path("certs.d"))
    return (
        f"put its CA into {first / host}/ca.crt, into the system's CAs or a file named by "
        f"SSL_CERT_FILE, or set ca_file (or, unsafe, insecure) for this host"
    )


def _has_system_cas(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"] > 0:
        return True
    # OpenSSL reads a CA directory only when it verifies, so its files are not counted above.
    directory = ssl.get_default_verify_paths().capath
    return directory is not None and any(Path(directory).glob("*.[0-9]"))


def _load_ca(context: ssl.SSLContext, file: Path) -> None:
    try:
        context.load_verify_locations(file)
    except OSError as error:
        # ssl.SSLError is an OSError too: no certificate in it.
        reason = error.strerror or "no PEM certificates in it"
        raise ConfigError(f"CA file {file} cannot be used: {reason}") from error


def _load_client_cert(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    try:
        # An empty password makes an encrypted key fail instead of asking on the terminal.
        context.load_cert_chain(cert, key, password="")
    except OSError as error:
        reason = error.strerror or "no matching certificate and key"
        raise ConfigError(f"client certificate {cert} cannot be used: {reason}") from error
