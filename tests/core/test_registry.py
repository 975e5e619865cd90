"""The client against Debian's docker-registry: plain, htpasswd, TLS, tokens, redirects."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import trio
from support.registry import INDEX_TYPE, MANIFEST_TYPE, RealRegistry, wait_until
from support.registry_client import without_environment

from hybrid.config import CredentialConfig, RegistryHost
from hybrid.core.credentials import Credentials
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry, RegistrySettings
from hybrid.errors import (
    AuthError,
    CertificateError,
    ConfigError,
    FormatError,
    HybridError,
    NetworkError,
    NotFoundError,
)

REPO = "team/app"
BLOB = Random(2).randbytes(1 << 20)
SMALL = b"a small blob"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


def settings(**changes: object) -> RegistrySettings:
    """Short times, and nothing of this machine's own set-up."""
    short: dict[str, object] = {
        "retry_seconds": 5.0,
        "first_pause_seconds": 0.02,
        "longest_pause_seconds": 0.1,
        "certs_directories": (),
    }
    return RegistrySettings(**{**short, **changes})  # type: ignore[arg-type]


def logins(tmp_path: Path, host: str = "", entry: dict[str, str] | None = None) -> Credentials:
    """Credentials from one Docker file with one entry, or anonymous."""
    auths = {host: entry} if entry else {}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    own = CredentialConfig(file=tmp_path / "no-cred.json")
    return Credentials(own, {"DOCKER_CONFIG": str(tmp_path)})


def entry(user: str = "alice", password: str = "wonder:land") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


class Filled:
    """A registry with one image in it."""

    def __init__(self, server: RealRegistry) -> None:
        self.server = server
        self.manifest_digest, layers = server.push_image(REPO, "v1", [BLOB])
        self.blob_digest = layers[0]
        self.small_digest = server.push_blob(REPO, SMALL)
        self.ref = RegistryReference(server.host, REPO, "v1")


@pytest.fixture(scope="module")
def plain() -> Iterator[Filled]:
    with RealRegistry() as server:
        yield Filled(server)


@pytest.fixture(scope="module")
def htpasswd() -> Iterator[Filled]:
    with RealRegistry(auth="htpasswd", redirect=True) as server:
        yield Filled(server)


@pytest.fixture(scope="module")
def tls() -> Iterator[Filled]:
    with RealRegistry(tls=True) as server:
        yield Filled(server)


@pytest.fixture(scope="module")
def token() -> Iterator[Filled]:
    with RealRegistry(auth="token", users={"alice": "wonder:land", "bob": "builder"}) as server:
        yield Filled(server)


@pytest.fixture(scope="module")
def redirect() -> Iterator[Filled]:
    with RealRegistry(redirect=True) as server:
        yield Filled(server)


# -- plain ---------------------------------------------------------------------------------------


async def test_manifest_by_tag_and_by_digest(plain: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        by_tag = await registry.get_manifest(plain.ref)
        by_digest = await registry.get_manifest(plain.ref, plain.manifest_digest)
    assert by_tag == by_digest
    assert by_tag.media_type == MANIFEST_TYPE
    assert by_tag.digest == plain.manifest_digest
    assert json.loads(by_tag.data)["layers"][0]["digest"] == plain.blob_digest


async def test_an_index_is_accepted(plain: Filled, tmp_path: Path) -> None:
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    digest = plain.server.push_manifest(REPO, "index", json.dumps(index).encode(), INDEX_TYPE)
    async with Registry(settings(), logins(tmp_path)) as registry:
        found = await registry.get_manifest(plain.ref, "index")
    assert (found.media_type, found.digest) == (INDEX_TYPE, digest)


async def test_whole_blob_with_limit(plain: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        assert await registry.get_blob(plain.ref, plain.small_digest, len(SMALL)) == SMALL
        with pytest.raises(FormatError, match="more than the 11 allowed"):
            await registry.get_blob(plain.ref, plain.small_digest, len(SMALL) - 1)


async def test_blob_size(plain: Filled, redirect: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        for filled in (plain, redirect):
            assert await registry.blob_size(filled.ref, filled.blob_digest) == len(BLOB)
            assert await registry.blob_size(filled.ref, filled.small_digest) == len(SMALL)
        empty = plain.server.push_blob(REPO, b"")
        assert await registry.blob_size(plain.ref, empty) == 0


async def test_source_reads_ranges(plain: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        source = registry.blob_source(plain.ref, plain.blob_digest, len(BLOB))
        assert source.pread_nowait(0, 10) is None
        for offset, length in [(0, 1), (511, 513), (len(BLOB) - 1, 1), (0, len(BLOB)), (7, 0)]:
            assert await source.pread(offset, length) == BLOB[offset : offset + length]
        with pytest.raises(ValueError, match="leaves"):
            await source.pread(len(BLOB), 1)
    assert source.name == f"{plain.server.host}/{REPO}@{plain.blob_digest}"
    assert registry.stats == {"requests": 4 + 1, "bytes_fetched": 1 + 513 + 1 + len(BLOB)}


async def test_parallel_reads_need_one_request_each(plain: Filled, tmp_path: Path) -> None:
    plain.server.forget_requests()
    async with Registry(settings(), logins(tmp_path)) as registry:
        source = registry.blob_source(plain.ref, plain.blob_digest, len(BLOB))

        async def read(offset: int) -> None:
            assert await source.pread(offset, 4096) == BLOB[offset : offset + 4096]

        async with trio.open_nursery() as nursery:
            for offset in range(0, 64 * 4096, 4096):
                nursery.start_soon(read, offset)
    # The one request more is the greeting in TLS, which no handler of the registry saw.
    assert registry.stats["requests"] == 64 + 1
    plain.server.request("GET", "/v2/last/tags/list", "last", expect=())
    wait_until(lambda: bool(plain.server.requests("GET", "/v2/last/")), "its line in the log")
    assert len(plain.server.requests("GET", plain.blob_digest)) == 64


async def test_a_size_that_is_not_the_real_one(plain: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        longer = registry.blob_source(plain.ref, plain.blob_digest, len(BLOB) + 512)
        with pytest.raises(FormatError, match="the manifest says"):
            await longer.pread(0, 512)
        with pytest.raises(FormatError, match="shorter than the manifest says"):
            await longer.pread(len(BLOB), 512)


async def test_what_is_not_there(plain: Filled, tmp_path: Path) -> None:
    missing = "sha256:" + "0" * 64
    async with Registry(settings(), logins(tmp_path)) as registry:
        with pytest.raises(NotFoundError) as caught:
            await registry.get_manifest(plain.ref, "nope")
        assert f"{plain.server.host}/{REPO}:nope" in caught.value.message
        assert "404" in caught.value.message
        assert "MANIFEST_UNKNOWN" in caught.value.message
        with pytest.raises(NotFoundError, match="no/such"):
            await registry.get_manifest(RegistryReference(plain.server.host, "no/such"))
        with pytest.raises(NotFoundError, match=missing):
            await registry.get_blob(plain.ref, missing, 10)
        with pytest.raises(NotFoundError, match=missing):
            await registry.blob_source(plain.ref, missing, 10).pread(0, 10)


async def test_a_blob_damaged_in_the_registry(plain: Filled, tmp_path: Path) -> None:
    digest = plain.server.push_blob(REPO, b"will be damaged")
    plain.server.blob_path(digest).write_bytes(b"Will be damaged")
    async with Registry(settings(), logins(tmp_path)) as registry:
        with pytest.raises(FormatError, match=f"not {digest}"):
            await registry.get_blob(plain.ref, digest, 100)


async def test_an_outage_is_bounded_and_then_over(tmp_path: Path) -> None:
    with RealRegistry() as server:
        filled = Filled(server)
        async with Registry(settings(retry_seconds=0.3), logins(tmp_path)) as registry:
            source = registry.blob_source(filled.ref, filled.blob_digest, len(BLOB))
            assert await source.pread(0, 512) == BLOB[:512]
            server.stop()
            with pytest.raises(NetworkError, match=server.host), trio.fail_after(3):
                await source.pread(0, 512)
            server.start()
            assert await source.pread(0, 512) == BLOB[:512]


async def test_a_read_survives_a_short_outage(tmp_path: Path) -> None:
    with RealRegistry() as server:
        filled = Filled(server)
        server.stop()
        async with Registry(settings(), logins(tmp_path)) as registry:
            source = registry.blob_source(filled.ref, filled.blob_digest, len(BLOB))

            async def read() -> None:
                assert await source.pread(0, 512) == BLOB[:512]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                while registry.stats["requests"] < 2:
                    await trio.lowlevel.checkpoint()
                server.start()


async def test_a_host_without_an_address(tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        with pytest.raises(NetworkError, match=r"no host registry\.invalid"):
            await registry.get_manifest(RegistryReference("registry.invalid", "a"))


# -- htpasswd ------------------------------------------------------------------------------------


async def test_basic_login(htpasswd: Filled, tmp_path: Path) -> None:
    login = logins(tmp_path, htpasswd.server.host, entry())
    async with Registry(settings(), login) as registry:
        assert (await registry.get_manifest(htpasswd.ref)).digest == htpasswd.manifest_digest
        before = registry.stats["requests"]
        await registry.get_manifest(htpasswd.ref)
        # The header is known by now: no second 401.
        assert registry.stats["requests"] == before + 1


async def test_basic_login_does_not_follow_a_redirect(htpasswd: Filled, tmp_path: Path) -> None:
    login = logins(tmp_path, htpasswd.server.host, entry())
    htpasswd.server.storage.requests.clear()
    async with Registry(settings(), login) as registry:
        assert await registry.get_blob(htpasswd.ref, htpasswd.small_digest, 100) == SMALL
    assert [had_login for _, _, had_login in htpasswd.server.storage.requests] == [False]


@pytest.mark.parametrize(("who", "word"), [(entry("alice", "wrong"), "alice"), (None, "none was")])
async def test_basic_login_refused(
    htpasswd: Filled, tmp_path: Path, who: dict[str, str] | None, word: str
) -> None:
    async with Registry(settings(), logins(tmp_path, htpasswd.server.host, who)) as registry:
        with pytest.raises(AuthError) as caught:
            await registry.get_manifest(htpasswd.ref)
    assert word in str(caught.value)
    assert "docker login" in caught.value.hint
    assert registry.stats["requests"] <= 4


async def test_a_login_made_later_takes_effect(htpasswd: Filled, tmp_path: Path) -> None:
    login = logins(tmp_path, htpasswd.server.host, entry("alice", "wrong"))
    async with Registry(settings(), login) as registry:
        with pytest.raises(AuthError):
            await registry.get_manifest(htpasswd.ref)
        logins(tmp_path, htpasswd.server.host, entry())
        assert (await registry.get_manifest(htpasswd.ref)).digest == htpasswd.manifest_digest


# -- TLS -----------------------------------------------------------------------------------------


async def test_an_untrusted_certificate(tls: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        for _ in range(2):
            with pytest.raises(CertificateError) as caught:
                await registry.get_manifest(tls.ref)
        assert tls.server.host in caught.value.message
        for way in ("ca.crt", "SSL_CERT_FILE", "ca_file", "insecure"):
            assert way in caught.value.hint
        # Neither retried nor tried over plain HTTP.
        assert registry.stats["requests"] == 2


async def test_ways_to_trust(tls: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, ca_file = tls.server.host, tls.server.ca_file
    certs = tmp_path / "certs.d"
    (certs / host).mkdir(parents=True)
    (certs / host / "ca.crt").write_bytes(ca_file.read_bytes())
    by_directory = settings(certs_directories=(tmp_path / "missing", certs))
    by_option = settings(hosts={host: RegistryHost(ca_file=ca_file)})
    insecure = settings(hosts={host: RegistryHost(insecure=True)})
    for trusting in (by_directory, by_option, insecure):
        async with Registry(trusting, logins(tmp_path)) as registry:
            assert (await registry.get_manifest(tls.ref)).digest == tls.manifest_digest
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    async with Registry(settings(), logins(tmp_path)) as registry:
        assert (await registry.get_manifest(tls.ref)).digest == tls.manifest_digest


async def test_ca_files_that_cannot_be_used(
    tls: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "missing.pem"):
        trusting = settings(hosts={tls.server.host: RegistryHost(ca_file=file)})
        async with Registry(trusting, logins(tmp_path)) as registry:
            with pytest.raises(ConfigError, match=file.name):
                await registry.get_manifest(tls.ref)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    async with Registry(settings(), logins(tmp_path)) as registry:
        with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
            await registry.get_manifest(tls.ref)


async def test_insecure_also_means_plain_http(plain: Filled, tmp_path: Path) -> None:
    insecure = settings(hosts={plain.server.host: RegistryHost(insecure=True)})
    async with Registry(insecure, logins(tmp_path)) as registry:
        assert (await registry.get_manifest(plain.ref)).digest == plain.manifest_digest


async def test_schemes_that_are_fixed(plain: Filled, tls: Filled, tmp_path: Path) -> None:
    http = settings(hosts={plain.server.host: RegistryHost(plain_http=True)}, retry_seconds=0.2)
    async with Registry(http, logins(tmp_path)) as registry:
        await registry.get_manifest(plain.ref)
        assert registry.stats["requests"] == 1
        with pytest.raises(NetworkError, match="does not speak TLS"):
            await registry.get_manifest(plain.ref, scheme="https")
        with pytest.raises(NetworkError, match="400 Bad Request"):
            await registry.get_manifest(tls.ref, scheme="http")


# -- tokens --------------------------------------------------------------------------------------


async def test_a_token_for_a_user(token: Filled, tmp_path: Path) -> None:
    token.server.tokens.requests.clear()
    login = logins(tmp_path, token.server.host, entry())
    async with Registry(settings(), login) as registry:
        assert (await registry.get_manifest(token.ref)).digest == token.manifest_digest
        assert await registry.get_blob(token.ref, token.small_digest, 100) == SMALL
    assert [r["scope"] for r in token.server.tokens.requests] == [f"repository:{REPO}:pull"]
    assert token.server.tokens.requests[0]["method"] == "GET"


async def test_parallel_reads_make_one_token_request(token: Filled, tmp_path: Path) -> None:
    token.server.tokens.requests.clear()
    login = logins(tmp_path, token.server.host, entry())
    async with Registry(settings(max_connections=4), login) as registry:
        source = registry.blob_source(token.ref, token.blob_digest, len(BLOB))

        async def read(offset: int) -> None:
            assert await source.pread(offset, 512) == BLOB[offset : offset + 512]

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(read, number * 512)
    assert len(token.server.tokens.requests) == 1


async def test_an_identity_token(token: Filled, tmp_path: Path) -> None:
    token.server.tokens.requests.clear()
    identity = {"identitytoken": token.server.tokens.identity_token("bob")}
    login = logins(tmp_path, token.server.host, identity)
    async with Registry(settings(), login) as registry:
        assert (await registry.get_manifest(token.ref)).digest == token.manifest_digest
    asked = token.server.tokens.requests
    assert [r["method"] for r in asked] == ["POST"]
    assert asked[0]["grant_type"] == "refresh_token"
    assert asked[0]["client_id"] == "hybrid"


async def test_an_expired_token_is_renewed(
    token: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the network needs: every use finds it expired.
    monkeypatch.setattr(token.server.tokens, "expires_in_seconds", 1e-6)
    monkeypatch.setattr(token.server.tokens, "mint", long_lived(token))
    token.server.tokens.requests.clear()
    login = logins(tmp_path, token.server.host, entry())
    async with Registry(settings(), login) as registry:
        for _ in range(3):
            await registry.get_manifest(token.ref)
    assert len(token.server.tokens.requests) == 3


def long_lived(token: Filled) -> Callable[[str, list[str], set[str]], str]:
    """Signs tokens that the registry accepts whatever ``expires_in`` says."""
    tokens, mint = token.server.tokens, token.server.tokens.mint

    def minted(user: str, scopes: list[str], actions: set[str]) -> str:
        stated, tokens.expires_in_seconds = tokens.expires_in_seconds, 300
        try:
            return mint(user, scopes, actions)
        finally:
            tokens.expires_in_seconds = stated

    return minted


async def test_anonymous_tokens(tmp_path: Path) -> None:
    with RealRegistry(auth="token", anonymous_pull=True) as server:
        filled = Filled(server)
        async with Registry(settings(), logins(tmp_path)) as registry:
            assert (await registry.get_manifest(filled.ref)).digest == filled.manifest_digest


async def test_token_server_refuses(token: Filled, tmp_path: Path) -> None:
    login = logins(tmp_path, token.server.host, entry("alice", "wrong"))
    async with Registry(settings(), login) as registry:
        with pytest.raises(AuthError) as caught:
            await registry.get_manifest(token.ref)
    for word in ("alice", REPO, "401", "bad login"):
        assert word in caught.value.message
    assert "wrong" not in str(caught.value)


async def test_a_failing_login_is_not_hammered(token: Filled, tmp_path: Path) -> None:
    token.server.tokens.requests.clear()
    failures: list[HybridError] = []
    login = logins(tmp_path, token.server.host, entry("alice", "wrong"))
    async with Registry(settings(), login) as registry:

        async def read() -> None:
            try:
                await registry.get_blob(token.ref, token.small_digest, 100)
            except AuthError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
    assert len(failures) == 10
    assert len(token.server.tokens.requests) < 10


async def test_a_token_without_rights(token: Filled, tmp_path: Path) -> None:
    async with Registry(settings(), logins(tmp_path)) as registry:
        with pytest.raises(AuthError) as caught:
            await registry.get_manifest(token.ref)
    assert "401" in caught.value.message
    assert f"{REPO}:v1" in caught.value.message


# -- redirects -----------------------------------------------------------------------------------


async def test_a_redirect_is_followed_and_remembered(redirect: Filled, tmp_path: Path) -> None:
    redirect.server.storage.requests.clear()
    async with Registry(settings(), logins(tmp_path)) as registry:
        source = registry.blob_source(redirect.ref, redirect.blob_digest, len(BLOB))
        for number in range(5):
            assert await source.pread(number, 1000) == BLOB[number : number + 1000]
    assert [r for _, r, _ in redirect.server.storage.requests] == [
        f"bytes={n}-{n + 999}" for n in range(5)
    ]
    # TLS greeting, the registry once, the storage five times.
    assert registry.stats["requests"] == 1 + 1 + 5


async def test_a_remembered_place_expires(redirect: Filled, tmp_path: Path) -> None:
    async with Registry(settings(redirect_seconds=0.0), logins(tmp_path)) as registry:
        source = registry.blob_source(redirect.ref, redirect.blob_digest, len(BLOB))
        for _ in range(3):
            assert await source.pread(0, 10) == BLOB[:10]
    assert registry.stats["requests"] == 1 + 3 * 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_storage_that_refuses_is_asked_anew(
    redirect: Filled, tmp_path: Path, status: int
) -> None:
    storage = redirect.server.storage
    async with Registry(settings(), logins(tmp_path)) as registry:
        source = registry.blob_source(redirect.ref, redirect.blob_digest, len(BLOB))
        assert await source.pread(0, 10) == BLOB[:10]
        storage.refuse_status = status
        before = registry.stats["requests"]
        try:
            with pytest.raises(HybridError) as caught:
                await source.pread(0, 10)
        finally:
            storage.refuse_status = 0
        # The remembered place, the registry, and the new place, once each.
        assert registry.stats["requests"] == before + 3
        assert str(status) in caught.value.message
        assert storage.host in caught.value.message
        assert await source.pread(0, 10) == BLOB[:10]
