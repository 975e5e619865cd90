"""What registries, storage and token servers must not get out of the client, or do to it."""

import json
import ssl
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
import trustme
from support.faulty_registry import Reply, Request, faulty_registry
from support.registry_client import (
    DATA,
    DIGEST,
    LOGIN,
    REPO,
    client,
    read,
    sequence,
    serve,
    without_environment,
)

from hybrid.config import RegistryHost
from hybrid.core.auth import MAX_SLOTS, TokenKey, check_realm
from hybrid.core.challenge import parse_challenges
from hybrid.core.fetch import is_outdated
from hybrid.core.hosts import is_endpoint
from hybrid.core.origins import MAX_ORIGINS, Origins
from hybrid.core.proxies import Proxies
from hybrid.core.redirect import Target, next_target
from hybrid.core.reference import RegistryReference
from hybrid.errors import AuthError, CertificateError, HybridError, NetworkError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """(file with a CA that no system knows, server context with its certificate)."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem", context


def redirect_to(location: str) -> Reply:
    return Reply(307, headers={"Location": location})


# -- what belongs to one port stays there --------------------------------------------------------


async def test_cookies_are_not_kept() -> None:
    cookie = {"Set-Cookie": "sess=SECRET; Path=/"}
    async with faulty_registry(serve) as storage:
        reply = Reply(307, headers={**cookie, "Location": f"http://{storage.host}/blob"})
        async with faulty_registry(lambda request: reply) as server:
            registry, ref = client(server, redirect_seconds=0.0)
            async with registry:
                await read(registry, ref)
                await read(registry, ref, 1)
            assert len(server.requests) == len(storage.requests) == 2
            for request in server.requests + storage.requests:
                assert "cookie" not in request.headers


async def test_insecure_holds_for_one_port(tls: tuple[Path, ssl.SSLContext]) -> None:
    async with (
        faulty_registry(serve, tls[1]) as storage,
        faulty_registry(lambda request: redirect_to(f"https://{storage.host}/b")) as server,
    ):
        exception = {server.host: RegistryHost(plain_http=True, insecure=True)}
        registry, ref = client(server, hosts=exception)
        async with registry:
            with pytest.raises(CertificateError, match=storage.host):
                await read(registry, ref)
        assert storage.requests == []


async def test_the_trust_hint_works_for_storage(
    tls: tuple[Path, ssl.SSLContext], tmp_path: Path
) -> None:
    certs = tmp_path / "certs.d"
    async with (
        faulty_registry(serve, tls[1]) as storage,
        faulty_registry(lambda request: redirect_to(f"https://{storage.host}/b")) as server,
    ):
        registry, ref = client(server, certs_directories=(certs,))
        async with registry:
            with pytest.raises(CertificateError) as caught:
                await read(registry, ref)
        file = certs / storage.host / "ca.crt"
        assert str(file) in caught.value.hint
        file.parent.mkdir(parents=True)
        file.write_bytes(tls[0].read_bytes())
        registry, ref = client(server, certs_directories=(certs,))
        async with registry:
            await read(registry, ref)


@pytest.mark.parametrize(
    ("host", "url", "same"),
    [
        ("reg.x", "https://reg.x/a", True),
        ("reg.x:443", "https://REG.x/a", True),
        ("reg.x", "http://reg.x:80/a", True),
        ("reg.x", "https://reg.x:8443/a", False),
        ("reg.x:443", "http://reg.x/a", False),
        ("[::1]:5000", "http://[::1]:5000/", True),
        ("[::1]", "http://[::1]:5000/", False),
        ("reg.x", "https://a.reg.x/", False),
    ],
)
def test_endpoints(host: str, url: str, same: bool) -> None:
    assert is_endpoint(host, httpx.URL(url)) is same


def test_only_a_registry_of_this_machine_leads_to_its_plain_http() -> None:
    local = "http://127.0.0.1:9/b"
    with pytest.raises(NetworkError, match="plain http"):
        next_target(Target("https://reg.x/v2/a"), local, "reg.x")
    assert next_target(Target("https://localhost:1/v2"), local, "localhost:1").url == local


def test_only_a_registry_of_this_machine_has_a_token_server_without_tls_there() -> None:
    key = TokenKey("reg.x", True, "http://127.0.0.1:9/token", "s", "x")
    with pytest.raises(AuthError, match="has not"):
        check_realm(key, RegistryReference("reg.x", REPO), LOGIN)
    check_realm(key, RegistryReference("127.0.0.1:5000", REPO), LOGIN)


# -- addresses that are none ---------------------------------------------------------------------

BAD_ADDRESSES = [
    "https://a..b/x",
    "http://a..b/x",
    f"http://{'a' * 70}.com/x",
    "http://xn--a/x",
    "http://[::1/",
    "http://127.0.0.1:1/\x7f",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:0/x",
]


@pytest.mark.parametrize("location", BAD_ADDRESSES)
async def test_redirects_to_no_address(location: str) -> None:
    async with faulty_registry(sequence(redirect_to(location))) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError) as caught:
                await read(registry, ref)
        assert len(server.requests) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("realm", [*BAD_ADDRESSES[:5], *BAD_ADDRESSES[6:]])
async def test_token_servers_without_address(realm: str) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
    async with faulty_registry(lambda request: Reply(401, headers=challenge)) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises((NetworkError, AuthError)):
                await read(registry, ref)
        assert len(server.requests) == 1


# -- token servers that move, fail or refuse -----------------------------------------------------


def challenge(host: str, scope: str = "x") -> Reply:
    bearer = f'Bearer realm="http://{host}/token",scope="{scope}"'
    return Reply(401, headers={"WWW-Authenticate": bearer})


def token(value: str, seconds: float = 300) -> Reply:
    return Reply(200, json.dumps({"token": value, "expires_in": seconds}).encode())


async def test_a_token_server_that_moved_is_found() -> None:
    places: list[str] = []

    def answer(request: Request) -> Reply:
        valid = "one" if len(places) == 1 else "two"
        if request.headers.get("authorization") == f"Bearer {valid}":
            return serve(request)
        return challenge(places[-1])

    async with faulty_registry(answer) as server:
        registry, ref = client(server)
        async with registry:
            async with faulty_registry(lambda request: token("one", 1e-6)) as old:
                places.append(old.host)
                await read(registry, ref)
            async with faulty_registry(lambda request: token("two")) as new:
                places.append(new.host)
                await read(registry, ref, 1)
                await read(registry, ref, 2)
                assert len(new.requests) == 1


async def test_a_registry_that_changes_to_basic() -> None:
    ways = ["bearer"]

    def answer(request: Request) -> Reply:
        header = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            return token("one", 1e-6) if ways == ["bearer"] else Reply(500)
        if header.lower().startswith(ways[0]):
            return serve(request)
        if ways == ["basic"]:
            return Reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return challenge(request.headers["host"])

    async with faulty_registry(answer) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            await read(registry, ref)
            ways[:] = ["basic"]
            await read(registry, ref, 1)
            asked = server.count("/token")
            await read(registry, ref, 2)
            assert server.count("/token") == asked


async def test_a_403_for_a_remembered_token_is_answered_once() -> None:
    valid = ["one"]
    handed = ["one", "two", "three"]

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return token(handed.pop(0))
        header = request.headers.get("authorization")
        if header == f"Bearer {valid[0]}":
            return serve(request)
        refused = challenge(request.headers["host"])
        return refused if header is None else Reply(403, headers=refused.headers)

    async with faulty_registry(answer) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)
            valid[0] = "two"
            await read(registry, ref, 1)
            assert server.count("/token") == 2
            valid[0] = "none"
            with pytest.raises(AuthError, match="403"):
                await read(registry, ref, 2)
            assert server.count("/token") == 3


def test_which_403_is_about_a_token() -> None:
    bearer, basic = (parse_challenges([f'{scheme} realm="x"']) for scheme in ("Bearer", "Basic"))
    assert is_outdated(403, bearer)
    assert not is_outdated(403, basic)
    assert not is_outdated(403, [])
    assert not is_outdated(404, bearer)


async def test_readers_share_a_failure_of_the_token_server() -> None:
    gate = trio.Event()
    replies = [Reply(503, gate=gate), token("one")]

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return replies.pop(0)
        if request.headers.get("authorization") == "Bearer one":
            return serve(request)
        return challenge(request.headers["host"])

    async with faulty_registry(answer) as server:
        registry, ref = client(server, read_seconds=3.0, first_pause_seconds=0.05)
        async with registry, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(read, registry, ref, number)
            with trio.fail_after(3):
                while server.count("/v2/") < 10 or server.count("/token") < 1:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked(0.02)
            gate.set()
        assert server.count("/token") == 2


async def test_ever_new_scopes_are_not_all_kept() -> None:
    scopes = iter(range(10_000))

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return token("one")
        return challenge(request.headers["host"], f"scope{next(scopes)}")

    async with faulty_registry(answer) as server:
        registry, ref = client(server)
        async with registry:
            for _ in range(MAX_SLOTS):
                with pytest.raises(AuthError):
                    await read(registry, ref)
            slots = registry.fetcher._auth._slots
            assert next(scopes) > MAX_SLOTS
            assert len(slots) <= MAX_SLOTS


# -- one host does not take from another ---------------------------------------------------------


async def test_a_silent_host_does_not_starve_another() -> None:
    async with (
        faulty_registry(lambda request: Reply(silent=True)) as silent,
        faulty_registry(serve) as server,
    ):
        plain = {host: RegistryHost(plain_http=True) for host in (silent.host, server.host)}
        registry, ref = client(server, hosts=plain, read_seconds=30.0, max_connections=2)
        async with registry, trio.open_nursery() as nursery:
            for number in range(4):
                stuck = RegistryReference(silent.host, REPO)
                nursery.start_soon(read, registry, stuck, number)
            with trio.fail_after(3):
                while len(silent.requests) < 2:
                    await trio.lowlevel.checkpoint()
                await read(registry, ref)
            nursery.cancel_scope.cancel()


async def test_a_429_holds_all_readers_back() -> None:
    fault = Reply(429, headers={"Retry-After": "5"})
    async with faulty_registry(sequence(fault, serve)) as server:
        registry, ref = client(server)
        async with registry:
            for number in range(5):
                with pytest.raises(NetworkError, match="429"):
                    await read(registry, ref, number)
        assert len(server.requests) == 1


def test_ever_new_origins_are_not_all_kept() -> None:
    origins = Origins(2, Proxies({}))
    first = origins.get(httpx.URL("https://first.x"))
    assert origins.get(httpx.URL("https://first.x:443/path")) is first
    first.limiter.acquire_on_behalf_of_nowait(first)
    for number in range(3 * MAX_ORIGINS):
        origins.get(httpx.URL(f"https://host{number}.x"))
    assert len(origins._known) <= MAX_ORIGINS
    assert origins.get(httpx.URL("https://first.x")) is first


# -- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", ["bytes 100-149/*", "BYTES 100-149/4096"])
async def test_legal_content_ranges(stated: str) -> None:
    reply = Reply(206, DATA[100:150], {"Content-Range": stated})
    async with faulty_registry(lambda request: reply) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)
            with pytest.raises(HybridError):
                await registry.read_range(ref, DIGEST, 101, 50, len(DATA))
