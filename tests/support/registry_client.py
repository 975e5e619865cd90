"""A registry client with short times for faulty_registry, and reads that check their bytes."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from support.faulty_registry import FaultyRegistry, Handler, Reply, Request, range_reply

from hybrid.config import RegistryHost
from hybrid.core.credentials import Credentials, Login
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry, RegistrySettings

REPO = "team/app"
DATA = Random(3).randbytes(4096)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
LOGIN = Login("alice", "wonder:land")
BASIC = "Basic YWxpY2U6d29uZGVyOmxhbmQ="


def without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proxies nor CAs of whoever runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


class FixedCredentials(Credentials):
    """One login for all, or none."""

    def __init__(self, login: Login | None = None) -> None:
        super().__init__(environ={})
        self.login = login

    async def lookup(self, host: str, repository: str) -> Login | None:
        return self.login


def client(
    server: FaultyRegistry, login: Login | None = None, **changes: object
) -> tuple[Registry, RegistryReference]:
    """A client that takes the server for a plain HTTP registry, with short times."""
    options: dict[str, object] = {
        "hosts": {server.host: RegistryHost(plain_http=True)},
        "retry_seconds": 3.0,
        "first_pause_seconds": 0.01,
        "longest_pause_seconds": 0.02,
        "read_seconds": 0.2,
        "connect_seconds": 1.0,
        "certs_directories": (),
    } | changes
    registry = Registry(RegistrySettings(**options), FixedCredentials(login))  # type: ignore[arg-type]
    return registry, RegistryReference(server.host, REPO, "v1")


def sequence(*replies: Reply | Handler) -> Handler:
    """The replies one after another; the last one for ever."""
    waiting = list(replies)

    def answer(request: Request) -> Reply:
        reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return reply if isinstance(reply, Reply) else reply(request)

    return answer


def serve(request: Request) -> Reply:
    return range_reply(DATA, request)


async def read(registry: Registry, ref: RegistryReference, at: int = 100, length: int = 50) -> None:
    """One range read through a Source; its bytes must be the right ones."""
    source = registry.blob_source(ref, DIGEST, len(DATA))
    assert await source.pread(at, length) == DATA[at : at + length]
