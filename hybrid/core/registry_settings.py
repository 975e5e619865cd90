"""What can be set about registries. Light to import: nothing here needs an HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hybrid import __version__
from hybrid.config import RegistryHost

CERTS_DIRECTORIES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
"""Below these, ``HOST[:PORT]/*.crt`` are private CAs, ``*.cert`` and ``*.key`` are our own."""


@dataclass(frozen=True)
class RegistrySettings:
    """How the registry client behaves. All times are seconds."""

    hosts: Mapping[str, RegistryHost] = field(default_factory=dict)
    """Exceptions by ``host`` or ``host:port``, as written in the image's name."""
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    user_agent: str = f"hybrid/{__version__}"
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    """Longest wait for the next bytes of an answer, and for sending a request."""
    retry_seconds: float = 30.0
    """Budget of one operation: all its attempts and the pauses between them."""
    chunk_bytes: int = 8 << 20
    """Length of the parts of an upload whose digest is not known yet; kept until they arrived."""
    stored_seconds: float = 300.0
    """Longest wait for the answer to the end of an upload: storage may copy and hash the blob."""
    first_answer_seconds: float = 10.0
    """The budget for a manifest, where it is smaller: whoever mounts an image waits for it."""
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 5.0
    redirect_seconds: float = 240.0
    """How long the storage URL of a blob is used again (they are signed, and expire)."""
    max_connections: int = 16
    certs_directories: tuple[Path, ...] = CERTS_DIRECTORIES
