"""What can be set about registries. Light to import: nothing here needs an HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hybrid import __version__

CERTS_DIRECTORIES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
"""Below these, ``HOST[:PORT]/*.crt`` are private CAs, ``*.cert`` and ``*.key`` are our own."""


@dataclass(frozen=True)
class HostOptions:
    """Exceptions for one registry host."""

    plain_http: bool = False
    """Talk plain HTTP, never TLS."""
    insecure: bool = False
    """Do not verify the certificate, and fall back to plain HTTP if there is no TLS at all."""
    ca_file: Path | None = None
    """PEM file with CAs that are trusted for this host besides those of the system."""


@dataclass(frozen=True)
class RegistrySettings:
    """How the registry client behaves. All times are seconds."""

    hosts: Mapping[str, HostOptions] = field(default_factory=dict)
    """Exceptions by ``host`` or ``host:port``, as written in the image's name."""
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    user_agent: str = f"hybrid/{__version__}"
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    """Longest wait for the next bytes of an answer, and for sending a request."""
    retry_seconds: float = 30.0
    """Budget of one operation: all its attempts and the pauses between them."""
    first_answer_seconds: float = 10.0
    """The budget for a manifest, where it is smaller: whoever mounts an image waits for it."""
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 5.0
    redirect_seconds: float = 240.0
    """How long the storage URL of a blob is used again (they are signed, and expire)."""
    max_connections: int = 16
    certs_directories: tuple[Path, ...] = CERTS_DIRECTORIES


@dataclass(frozen=True)
class CredentialSettings:
    """Where overlaybd's own credentials come from. Spec: image-config 2 and 5."""

    mode: str = ""
    """"" (``file`` below), ``file``, ``http``, ``https`` or ``uds`` (all at ``path``)."""
    path: str = ""
    """File name, URL or socket name, by ``mode``."""
    timeout_seconds: float = 1.0
    """For the credential service (modes http, https, uds)."""
    file: Path = Path("/opt/overlaybd/cred.json")
    """For mode "": may be missing."""
    client_cert_path: Path | None = None
    client_key_path: Path | None = None
    server_ca_path: Path | None = None
    """For mode https: the CA of the service; without it the system's CAs are used."""
    helper_seconds: float = 5.0
    """Longest run of a ``docker-credential-*`` program. Less than ``first_answer_seconds``, or a
    program that hangs would never be named."""
