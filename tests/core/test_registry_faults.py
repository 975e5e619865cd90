"""The client against servers that break, lie, stall and misuse redirects and challenges."""

import hashlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme
from support.faulty_registry import Handler, Reply, Request, faulty_registry
from support.registry_client import (
    BASIC,
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
from hybrid.core.hosts import has_port, host_name, is_loopback
from hybrid.core.redirect import Target, next_target
from hybrid.core.reference import RegistryReference
from hybrid.core.transport import first_schemes
from hybrid.errors import (
    AuthError,
    ConfigError,
    FormatError,
    HybridError,
    NetworkError,
    NotFoundError,
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


# -- what may pass is tried again ----------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Reply(500),
        Reply(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}),
        Reply(503),
        Reply(408),
        Reply(429),
        Reply(503, headers={"Retry-After": "0"}),
        Reply(drop=True),
        Reply(silent=True),
        lambda request: Reply(206, serve(request).body, serve(request).headers, cut_after=20),
        lambda request: Reply(206, serve(request).body[:20], serve(request).headers),
        lambda request: Reply(
            206, serve(request).body[:20], serve(request).headers, stated_length=-1
        ),
    ],
)
async def test_passing_faults_are_tried_again(fault: Reply | Handler) -> None:
    async with faulty_registry(sequence(fault, fault, serve)) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)
        assert len(server.requests) == 3


async def test_retry_after_is_honoured() -> None:
    fault = Reply(429, headers={"Retry-After": "1"})
    async with faulty_registry(sequence(fault, serve)) as server:
        registry, ref = client(server)
        async with registry:
            started = trio.current_time()
            await read(registry, ref)
            assert trio.current_time() - started >= 1.0


async def test_a_lasting_fault_ends_within_the_budget() -> None:
    body = json.dumps({"errors": [{"code": "UNAVAILABLE", "message": "down\x1b[31m\nfor now"}]})
    fault = Reply(503, body.encode(), {"Content-Type": "application/json"})
    async with faulty_registry(sequence(fault)) as server:
        registry, ref = client(server, retry_seconds=0.3)
        async with registry:
            with pytest.raises(NetworkError) as caught, trio.fail_after(2):
                await read(registry, ref)
    message = caught.value.message
    for word in (server.host, REPO, "bytes 100-149", "503", "UNAVAILABLE: down [31m for now"):
        assert word in message
    assert "tried" in caught.value.hint
    assert len(server.requests) > 2


async def test_a_silent_server_is_not_waited_for() -> None:
    async with faulty_registry(sequence(Reply(silent=True))) as server:
        registry, ref = client(server, retry_seconds=0.5)
        async with registry:
            with pytest.raises(NetworkError, match="silent for"), trio.fail_after(3):
                await read(registry, ref)


async def test_cancelling_a_read_leaves_the_client_usable() -> None:
    async with faulty_registry(sequence(Reply(silent=True), serve)) as server:
        registry, ref = client(server, read_seconds=10.0, max_connections=1)
        async with registry:
            with trio.move_on_after(0.1) as scope:
                await read(registry, ref)
            assert scope.cancelled_caught
            with trio.fail_after(2):
                await read(registry, ref)


async def test_connections_are_used_again() -> None:
    async with faulty_registry(serve) as server:
        registry, ref = client(server)
        async with registry:
            for number in range(10):
                await read(registry, ref, number)
        assert (len(server.requests), server.connections) == (10, 1)
        sent = server.requests[0].headers
        assert sent["user-agent"].startswith("hybrid/")
        assert sent["accept-encoding"] == "identity"
        assert "authorization" not in sent


async def test_connections_are_limited() -> None:
    async with faulty_registry(serve) as server:
        registry, ref = client(server, max_connections=3)
        async with registry, trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(read, registry, ref, number)
        assert server.connections <= 3


# -- what is wrong stays wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(206, DATA[:50], {"Content-Range": "bytes 0-49/4096"}), NetworkError),
        (Reply(206, DATA[100:150]), NetworkError),
        (Reply(206, DATA[100:150], {"Content-Range": "bytes 100-149/5000"}), FormatError),
        (Reply(206, DATA[100:151], {"Content-Range": "bytes 100-149/4096"}), NetworkError),
        (Reply(206, DATA[100:150], {"Content-Range": "bytes 100-149/4096",
                                    "Content-Encoding": "gzip"}), NetworkError),
        (Reply(416, headers={"Content-Range": "bytes */10"}), FormatError),
        (Reply(200, DATA), NetworkError),
        (Reply(204), NetworkError),
        (Reply(400), NetworkError),
        (Reply(403), AuthError),
        (Reply(404), NotFoundError),
        (Reply(410), NotFoundError),
        (Reply(407), AuthError),
        (Reply(418), NetworkError),
        (Reply(999), NetworkError),
        (Reply(302), NetworkError),
        (Reply(307, headers={"Location": "ftp://x/"}), NetworkError),
        (Reply(307, headers={"Location": "http://x:99999999/"}), NetworkError),
        (Reply(401), AuthError),
        (Reply(401, headers={"WWW-Authenticate": "Negotiate"}), AuthError),
        (Reply(401, headers={"WWW-Authenticate": 'Bearer realm="ftp://x"'}), AuthError),
    ],
)  # fmt: skip
async def test_wrong_answers_are_refused_at_once(reply: Reply, error: type[HybridError]) -> None:
    async with faulty_registry(sequence(reply)) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(error) as caught:
                await read(registry, ref)
        assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert server.host in str(caught.value)


async def test_the_body_of_a_server_without_ranges_is_not_read() -> None:
    huge = 1 << 40
    async with faulty_registry(lambda request: Reply(200, DATA, stated_length=huge)) as server:
        registry, ref = client(server)
        async with registry:
            source = registry.blob_source(ref, DIGEST, huge)
            with pytest.raises(NetworkError, match="ignores Range"):
                await source.pread(100, 50)
            assert await registry.blob_size(ref, DIGEST) == huge
            assert registry.stats["bytes_fetched"] == 0


async def test_a_whole_answer_is_good_for_a_whole_read() -> None:
    async with faulty_registry(lambda request: Reply(200, DATA)) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref, 0, len(DATA))


@pytest.mark.parametrize(
    ("headers", "body", "word"),
    [
        ({}, b"x" * ((4 << 20) + 1), "more than the"),
        ({"Docker-Content-Digest": "sha256:" + "0" * 64}, b"{}", "digest"),
        ({"Content-Encoding": "gzip"}, b"{}", "encoded"),
    ],
)
async def test_bad_manifests(headers: dict[str, str], body: bytes, word: str) -> None:
    async with faulty_registry(lambda request: Reply(200, body, headers)) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(HybridError, match=word):
                await registry.get_manifest(ref)


async def test_a_manifest_must_have_the_digest_it_was_asked_by() -> None:
    async with faulty_registry(lambda request: Reply(200, b"{}")) as server:
        registry, ref = client(server)
        async with registry:
            good = await registry.get_manifest(ref)
            assert good.digest == "sha256:" + hashlib.sha256(b"{}").hexdigest()
            assert good.media_type == ""
            with pytest.raises(FormatError, match="digest"):
                await registry.get_manifest(ref, DIGEST)


async def test_an_endless_manifest_is_cut() -> None:
    endless = Reply(200, b"x" * (5 << 20), stated_length=-1)
    async with faulty_registry(lambda request: endless) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError, match="more than the"):
                await registry.get_manifest(ref)


# -- proxies -------------------------------------------------------------------------------------


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with faulty_registry(serve) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        remote = {"reg.example.invalid": RegistryHost(plain_http=True)}
        registry, _ = client(proxy, hosts=remote)
        async with registry:
            await read(registry, RegistryReference("reg.example.invalid", REPO))
        assert proxy.requests[0].path.startswith("http://reg.example.invalid/v2/team/app/")


async def test_this_machine_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with faulty_registry(serve) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)


async def test_an_unusable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1:1")
    async with faulty_registry(serve) as server:
        registry, _ = client(server, hosts={})
        async with registry:
            with pytest.raises(ConfigError, match="proxy"):
                await read(registry, RegistryReference("reg.example.invalid", REPO))


# -- redirects -----------------------------------------------------------------------------------


async def test_redirects_end() -> None:
    def again(request: Request) -> Reply:
        return Reply(302, headers={"Location": f"{request.path}x"})

    async with faulty_registry(again) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError, match="more than 5 times"):
                await read(registry, ref)
        assert len(server.requests) == 6


async def test_a_redirect_within_the_host_keeps_the_login() -> None:
    def answer(request: Request) -> Reply:
        if "authorization" not in request.headers:
            return Reply(401, headers={"WWW-Authenticate": 'basic realm="x"'})
        if request.path.startswith("/v2/"):
            return Reply(307, headers={"Location": "/else?sig=%2F%2f+a"})
        return serve(request)

    async with faulty_registry(answer) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            await read(registry, ref)
        assert server.requests[-1].path == "/else?sig=%2F%2f+a"
        assert server.requests[-1].headers["authorization"] == BASIC


async def test_another_port_does_not_get_the_login() -> None:
    async with faulty_registry(serve) as storage:
        location = f"http://{storage.host}/blob?sig=a%2Fb"

        def answer(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return Reply(307, headers={"Location": location})

        async with faulty_registry(answer) as server:
            registry, ref = client(server, LOGIN)
            async with registry:
                await read(registry, ref)
                await read(registry, ref, 200)
        assert len(server.requests) == 2
        for request in storage.requests:
            assert "authorization" not in request.headers
            assert request.path == "/blob?sig=a%2Fb"


async def test_storage_that_moved_is_found_again() -> None:
    places: list[str] = []

    def answer(request: Request) -> Reply:
        return Reply(307, headers={"Location": places.pop(0)})

    async with (
        faulty_registry(sequence(serve, Reply(drop=True))) as old,
        faulty_registry(serve) as new,
        faulty_registry(answer) as server,
    ):
        places += [f"http://{old.host}/", f"http://{new.host}/"]
        registry, ref = client(server)
        async with registry:
            for number in range(3):
                await read(registry, ref, number)
        assert (len(server.requests), len(old.requests), len(new.requests)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("http://storage.x/b", False),
        ("http://127.0.0.1:9/b", False),
        ("https://storage.x/b", True),
        ("//storage.x/b", True),
        ("", False),
        ("file:///etc/passwd", False),
    ],
)
def test_tls_is_not_given_up(location: str, allowed: bool) -> None:
    start = Target("https://reg.x/v2/a")
    if allowed:
        assert next_target(start, location, "reg.x").url.endswith("/b")
    else:
        with pytest.raises(NetworkError, match=r"reg\.x"):
            next_target(start, location, "reg.x")


# -- tokens --------------------------------------------------------------------------------------


def token_registry(tokens: list[str], accepted: Callable[[str], bool]) -> Handler:
    """A registry and its token server in one; hands the tokens out one after another."""

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(200, json.dumps({"token": tokens.pop(0)}).encode())
        if accepted(request.headers.get("authorization", "")):
            return serve(request)
        host = request.headers["host"]
        challenge = f'Bearer realm="http://{host}/token",error="invalid_token"'
        return Reply(401, headers={"WWW-Authenticate": challenge})

    return answer


async def test_a_challenge_without_service_and_scope() -> None:
    handler = token_registry(["one"], lambda header: header == "Bearer one")
    async with faulty_registry(handler) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            await read(registry, ref)
        asked = server.requests[1]
        assert asked.path == "/token?scope=repository%3Ateam%2Fapp%3Apull"
        assert asked.headers["authorization"] == BASIC


async def test_a_revoked_token_is_renewed_once() -> None:
    valid = ["Bearer one"]
    handler = token_registry(["one", "two", "three"], lambda header: header in valid)
    async with faulty_registry(handler) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)
            valid[:] = ["Bearer two"]
            await read(registry, ref, 1)
            assert server.count("/token") == 2
            valid.clear()
            with pytest.raises(AuthError, match="401"):
                await read(registry, ref, 2)
            assert server.count("/token") == 3


async def test_a_token_server_with_a_hiccup() -> None:
    handler = token_registry(["one"], lambda header: header == "Bearer one")
    hiccups = [Reply(503), Reply(drop=True)]

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token") and hiccups:
            return hiccups.pop(0)
        return handler(request)

    async with faulty_registry(answer) as server:
        registry, ref = client(server)
        async with registry:
            await read(registry, ref)
        assert server.count("/token") == 3


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404])
async def test_a_token_server_that_refuses(status: int) -> None:
    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(status, b'{"details": "no way"}')
        host = request.headers["host"]
        return Reply(401, headers={"WWW-Authenticate": f'Bearer realm="http://{host}/token"'})

    async with faulty_registry(answer) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            with pytest.raises(HybridError) as caught:
                await read(registry, ref)
        assert server.count("/token") == 1
    assert str(status) in caught.value.message
    assert "no way" in caught.value.message
    assert "wonder" not in str(caught.value)


async def test_a_login_is_not_sent_in_the_clear_for_a_registry_with_tls(tmp_path: Path) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://auth.example.invalid/token"'}
    ca, context = tls_server()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with faulty_registry(lambda request: Reply(401, headers=challenge), context) as server:
        trusted = {server.host: RegistryHost(ca_file=tmp_path / "ca.pem")}
        registry, ref = client(server, LOGIN, hosts=trusted)
        async with registry:
            with pytest.raises(AuthError, match=r"auth\.example\.invalid has not"):
                await read(registry, ref)


# -- schemes -------------------------------------------------------------------------------------


def tls_server() -> tuple[trustme.CA, ssl.SSLContext]:
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return ca, context


@pytest.mark.parametrize("hang_up", [True, False])
async def test_loopback_falls_back_to_http_and_remembers_it(hang_up: bool) -> None:
    async with faulty_registry(serve, hang_up_on_tls=hang_up) as server:
        registry, ref = client(server, hosts={}, connect_seconds=0.3)
        async with registry:
            await read(registry, ref)
            await read(registry, ref, 1)
        assert registry.stats["requests"] == 3


async def test_a_slow_tls_server_is_not_taken_for_plain_http(tmp_path: Path) -> None:
    # Silent to the first greeting, 400 to plain HTTP, as a server of TLS would be.
    async with faulty_registry(lambda request: Reply(400)) as server:
        registry, ref = client(server, hosts={}, connect_seconds=0.1, retry_seconds=0.5)
        async with registry:
            with pytest.raises(NetworkError, match="cannot connect"):
                await read(registry, ref)
        assert registry.stats["requests"] >= 4


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    ca, context = tls_server()
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    identity = ca.issue_cert("client.x")
    certs = tmp_path / "certs.d"
    async with faulty_registry(serve, context) as server:
        (certs / server.host).mkdir(parents=True)
        ca.cert_pem.write_to_path(str(certs / server.host / "ca.crt"))
        changes = {"hosts": {}, "certs_directories": (certs,), "retry_seconds": 0.3}
        registry, ref = client(server, **changes)
        async with registry:
            with pytest.raises(NetworkError):
                await read(registry, ref)
        identity.cert_chain_pems[0].write_to_path(str(certs / server.host / "me.cert"))
        identity.private_key_pem.write_to_path(str(certs / server.host / "me.key"))
        registry, ref = client(server, **changes)
        async with registry:
            await read(registry, ref)


def test_host_names() -> None:
    assert [host_name(h) for h in ("a.x", "a.x:1", "[::1]", "[::1]:1")] == [
        "a.x",
        "a.x",
        "::1",
        "::1",
    ]
    assert [has_port(h) for h in ("a.x", "a.x:1", "[::1]", "[::1]:1")] == [False, True, False, True]
    for name in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        assert is_loopback(name)
    for name in ("128.0.0.1", "localhost.x", "0.0.0.0", "a.x", "::"):
        assert not is_loopback(name)


def test_schemes() -> None:
    assert first_schemes("reg.x", RegistryHost()) == ["https"]
    assert first_schemes("reg.x", RegistryHost(plain_http=True)) == ["http"]
    assert first_schemes("reg.x", RegistryHost(insecure=True)) == ["https", "http"]
    assert first_schemes("localhost:5000", RegistryHost()) == ["https", "http"]
