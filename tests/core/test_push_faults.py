"""Pushing to registries that misbehave: addresses of uploads, chunks cut short, refusals."""

from __future__ import annotations

from random import Random

import pytest
import trio
from support.faulty_registry import FaultyRegistry, Handler, Reply, Request, faulty_registry
from support.registry import sha256
from support.registry_client import BASIC, LOGIN, without_environment
from support.registry_client import client as plain_client
from support.streams import Content
from support.upload_registry import UploadRegistry, answer, half_then, pass_by, serve_then

from hybrid.core.byte_stream import memory_content
from hybrid.core.credentials import Login
from hybrid.core.push import Pusher
from hybrid.core.reference import ManifestBlob, RegistryReference
from hybrid.core.registry import Registry
from hybrid.core.upload import MOST_ATTEMPTS, Uploaded
from hybrid.errors import (
    AuthError,
    HybridError,
    NetworkError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
)

CHUNK_BYTES = 1 << 18
SMALL = Random(5).randbytes(50_000)
BIG = Random(6).randbytes(2 * CHUNK_BYTES + 999)
ONCE = {"known": False, "repeatable": False}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


def client(
    server: FaultyRegistry, login: Login | None = None, **changes: object
) -> tuple[Registry, RegistryReference]:
    return plain_client(server, login, **{"chunk_bytes": CHUNK_BYTES, **changes})


@pytest.fixture
def memory() -> UploadRegistry:
    return UploadRegistry()


async def put(server: FaultyRegistry, content: Content, **changes: object) -> Uploaded:
    registry, ref = client(server, **changes)
    steps: list[int] = []
    async with registry:
        stored = await Pusher(registry).put_blob(ref, content.blob, steps.append)
    assert stored == Uploaded(content.digest, len(content.data))
    assert sum(steps) == len(content.data)
    assert content.all_closed
    return stored


# -- where uploads go ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["relative", "absolute", "scheme-less"])
@pytest.mark.parametrize("data", [SMALL, BIG])
async def test_addresses_on_the_same_host(memory: UploadRegistry, shape: str, data: bytes) -> None:
    async with faulty_registry(memory) as server:
        prefix = {"relative": "", "absolute": f"http://{server.host}", "scheme-less": ""}[shape]
        if shape == "scheme-less":
            prefix = f"//{server.host}"
        memory.location = lambda path: prefix + path
        content = Content(data, **ONCE)
        await put(server, content)
    assert memory.blobs == {content.digest: data}
    assert not memory.uploads


async def test_what_the_registry_signed_stays_as_it_is(memory: UploadRegistry) -> None:
    async with faulty_registry(memory) as server:
        memory.location = lambda path: path + "&_state=a%2Fb+c%3D%3D&_X=%7E"
        await put(server, Content(SMALL))
        ended = next(r for r in server.requests if r.method == "PUT")
    digest = f"sha256%3A{sha256(SMALL)[7:]}"
    assert ended.path.endswith(f"?x=1&_state=a%2Fb+c%3D%3D&_X=%7E&digest={digest}")


@pytest.mark.parametrize("data", [SMALL, BIG])
async def test_another_host_gets_no_login(memory: UploadRegistry, data: bytes) -> None:
    def with_login(request: Request) -> Reply:
        if request.headers.get("authorization") != BASIC:
            return Reply(401, headers={"WWW-Authenticate": "Basic realm=x"})
        return memory(request)

    async with faulty_registry(memory) as other, faulty_registry(with_login) as server:
        memory.location = lambda path: f"http://{other.host}{path}"
        registry, ref = client(server, LOGIN)
        async with registry:
            await Pusher(registry).put_blob(ref, Content(data, **ONCE).blob)
        assert other.requests
        assert all("authorization" not in request.headers for request in other.requests)
        assert "authorization" in server.requests[-1].headers


async def test_another_host_that_asks_for_the_login_does_not_get_it(
    memory: UploadRegistry,
) -> None:
    greedy = Reply(401, headers={"WWW-Authenticate": "Basic realm=give-me"})
    async with faulty_registry(lambda request: greedy) as other, faulty_registry(memory) as server:
        memory.location = lambda path: f"http://{other.host}{path}"
        registry, ref = client(server, LOGIN)
        async with registry:
            with pytest.raises(AuthError):
                await Pusher(registry).put_blob(ref, Content(SMALL).blob)
        assert all("authorization" not in request.headers for request in other.requests)


@pytest.mark.parametrize(
    "location",
    ["", "ftp://127.0.0.1/x", "http://[::1", "http://127.0.0.1:99999/x", "file:///x"],
)
async def test_addresses_that_cannot_be_used(memory: UploadRegistry, location: str) -> None:
    memory.location = lambda path: location
    async with faulty_registry(memory) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError, match="sends uploads"):
                await Pusher(registry).put_blob(ref, Content(SMALL).blob)


async def test_a_push_that_is_sent_elsewhere(memory: UploadRegistry) -> None:
    for method in ("POST", "PUT"):
        memory.breaks[method] = answer(307, Location="http://127.0.0.1:1/elsewhere")
        async with faulty_registry(memory) as server:
            registry, ref = client(server)
            async with registry:
                with pytest.raises(NetworkError, match="sends pushes elsewhere"):
                    await Pusher(registry).put_blob(ref, Content(SMALL).blob)


# -- what is cut short -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [Reply(503), Reply(drop=True), Reply(202, headers={"Range": "0-300000"})]
)
async def test_a_chunk_goes_on_where_it_stopped(memory: UploadRegistry, reply: Reply) -> None:
    """The second chunk, of a stream that passes only once."""
    memory.breaks["PATCH"] = [pass_by, half_then(reply)]
    content = Content(BIG, **ONCE)
    async with faulty_registry(memory) as server:
        await put(server, content)
        sent = sum(len(r.body) for r in server.requests if r.method == "PATCH")
    assert memory.blobs[content.digest] == BIG
    # What had arrived was not sent again.
    assert sent == len(BIG) + CHUNK_BYTES // 2
    assert len(content.streams) == 1


async def test_the_first_chunk_begins_again(memory: UploadRegistry) -> None:
    memory.breaks["PATCH"] = [half_then(Reply(500))]
    content = Content(BIG, **ONCE)
    async with faulty_registry(memory) as server:
        await put(server, content)
    assert memory.blobs[content.digest] == BIG
    assert memory.cancelled == 1
    assert not memory.uploads


async def test_a_chunk_that_arrived_though_nobody_said_so(memory: UploadRegistry) -> None:
    memory.breaks["PATCH"] = [pass_by, serve_then(Reply(502))]
    content = Content(BIG, **ONCE)
    async with faulty_registry(memory) as server:
        await put(server, content)
        assert sum(len(r.body) for r in server.requests if r.method == "PATCH") == len(BIG)


async def test_an_end_that_arrived_though_nobody_said_so(memory: UploadRegistry) -> None:
    for data in (SMALL, BIG):
        memory.breaks["PUT"] = [serve_then(Reply(drop=True))]
        content = Content(data, **ONCE)
        async with faulty_registry(memory) as server:
            await put(server, content)
            assert sum(r.method == "PUT" for r in server.requests) == 1


async def test_an_upload_that_the_registry_forgets(memory: UploadRegistry) -> None:
    def forget(registry: UploadRegistry, request: Request) -> Reply | None:
        registry.uploads.clear()
        return None

    for repeatable in (True, False):
        memory.breaks["PATCH"] = [pass_by, forget]
        content = Content(BIG, known=False, repeatable=repeatable)
        async with faulty_registry(memory) as server:
            if repeatable:
                await put(server, content)
                assert len(content.streams) == 2
            else:
                with pytest.raises(NetworkError, match="cannot go on from there"):
                    await put(server, content)


@pytest.mark.parametrize("said", ["0-7", "0-99999999999", "nonsense", "5-10", ""])
async def test_a_registry_that_lies_about_what_it_has(memory: UploadRegistry, said: str) -> None:
    memory.breaks["PATCH"] = [pass_by, half_then(Reply(503))]
    memory.breaks["GET"] = answer(204, Range=said)
    async with faulty_registry(memory) as server:
        with pytest.raises(NetworkError, match="cannot go on from there"):
            await put(server, Content(BIG, **ONCE))
    assert not memory.blobs


async def test_long_chunks_are_wanted(memory: UploadRegistry) -> None:
    memory.extra_headers = {"OCI-Chunk-Min-Length": str(CHUNK_BYTES + 1000)}
    content = Content(BIG, **ONCE)
    async with faulty_registry(memory) as server:
        await put(server, content)
        sizes = [len(r.body) for r in server.requests if r.method == "PATCH"]
    assert sizes[:-1] == [CHUNK_BYTES + 1000]
    memory.extra_headers = {"OCI-Chunk-Min-Length": str(1 << 40)}
    async with faulty_registry(memory) as server:
        with pytest.raises(NetworkError, match="too many"):
            await put(server, Content(BIG, **ONCE))


async def test_a_registry_that_never_gets_it(memory: UploadRegistry) -> None:
    """Attempts are bounded, and each upload that was begun is given back."""
    for content in (Content(SMALL), Content(BIG, **ONCE), Content(BIG, known=False)):
        memory.breaks["PUT"] = answer(*[503] * 50)
        memory.breaks["PATCH"] = answer(*[503] * 200)
        async with faulty_registry(memory) as server:
            registry, ref = client(server)
            async with registry:
                with pytest.raises(NetworkError, match="503"):
                    await Pusher(registry).put_blob(ref, content.blob)
            begun = sum(r.method == "POST" for r in server.requests)
        assert begun <= MOST_ATTEMPTS
        assert not memory.uploads
        assert not memory.blobs


@pytest.mark.parametrize("known", [True, False])
async def test_a_cancelled_upload_is_given_back(memory: UploadRegistry, known: bool) -> None:
    method = "PUT" if known else "PATCH"
    memory.breaks[method] = [lambda registry, request: Reply(silent=True)]
    async with faulty_registry(memory) as server:
        registry, ref = client(server, read_seconds=20.0)
        with trio.move_on_after(0.3) as scope:
            async with registry:
                await Pusher(registry).put_blob(ref, Content(BIG, known=known).blob)
        assert scope.cancelled_caught
    assert memory.cancelled == 1
    assert not memory.uploads


async def test_a_digest_that_the_registry_does_not_believe(memory: UploadRegistry) -> None:
    wrong = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}'
    memory.breaks["PUT"] = answer(*[400] * 50, body=wrong)
    async with faulty_registry(memory) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError, match="DIGEST_INVALID"):
                await Pusher(registry).put_blob(ref, Content(SMALL).blob)


async def test_another_digest_was_stored(memory: UploadRegistry) -> None:
    stated = {"Docker_Content_Digest": sha256(b"other")}
    memory.breaks["PUT"] = answer(201, 201, **stated)
    manifest = ManifestBlob(b"{}", "x/y", sha256(b"{}"))
    async with faulty_registry(memory) as server:
        registry, ref = client(server)
        async with registry:
            with pytest.raises(NetworkError, match="the registry stored sha256:"):
                await Pusher(registry).put_blob(ref, Content(SMALL).blob)
            with pytest.raises(NetworkError, match="the registry stored sha256:"):
                await Pusher(registry).put_manifest(ref, manifest, "v1")


# -- refusals --------------------------------------------------------------------------------------

DENIED = b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}'
QUOTA = b'{"errors":[{"code":"DENIED","message":"adding 5 MiB will exceed the storage quota"}]}'
NAME = b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository does not exist"}]}'


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (403, DENIED, AuthError, "no permission to push to 127.0.0.1:[0-9]+/team/app.*DENIED"),
        (401, b"", AuthError, "no permission to push"),
        (413, b"", UnsupportedError, "limit of the registry"),
        (405, b"", UnsupportedError, "read-only"),
        (507, b"", StorageFullError, "no space left for this repository"),
        (412, QUOTA, StorageFullError, "quota"),
        (403, QUOTA, StorageFullError, "quota"),
        (404, NAME, NotFoundError, "have to be made first"),
        (400, b"", NetworkError, "400 Bad Request"),
        (200, b"", NetworkError, "200 OK"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
async def test_refusals(
    memory: UploadRegistry,
    method: str,
    status: int,
    body: bytes,
    error: type[HybridError],
    words: str,
) -> None:
    if status == 200 and method == "PUT":
        return  # some registries end an upload so
    headers = {"Content_Type": "application/json"}
    if status == 401:
        headers["WWW_Authenticate"] = "Basic realm=x"
    memory.breaks[method] = answer(*[status] * 20, body=body, **headers)
    async with faulty_registry(memory) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            with pytest.raises(error, match=words) as caught:
                await Pusher(registry).put_blob(ref, Content(BIG, **ONCE).blob)
        assert "\n" not in str(caught.value)
        assert sum(r.method == method for r in server.requests) <= 2
    assert not memory.blobs
    assert not memory.uploads


async def test_an_early_refusal_amid_a_long_body() -> None:
    """413 from a proxy that reads no further, and closes."""

    async def serve(stream: trio.SocketStream) -> None:
        data = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in data:
                    part = await stream.receive_some()
                    if not part:
                        return
                    data += part
                if data.startswith(b"POST"):
                    data = b""
                    await stream.send_all(
                        b"HTTP/1.1 202 Accepted\r\nLocation: /up\r\nContent-Length: 0\r\n\r\n"
                    )
                    continue
                await stream.send_all(
                    b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                # Closing with unread data would reset the answer away.
                with trio.move_on_after(0.5):
                    while await stream.receive_some():
                        pass
                return

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        server = FaultyRegistry(lambda request: Reply(), False)
        server.host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        registry, ref = client(server, read_seconds=2.0)
        async with registry:
            with pytest.raises(UnsupportedError, match="413"):
                await Pusher(registry).put_blob(ref, Content(BIG).blob)
        nursery.cancel_scope.cancel()


async def test_a_mount_that_is_refused(memory: UploadRegistry) -> None:
    for status in (401, 403, 404, 400, 405):
        memory.breaks["POST"] = answer(status, status)
        async with faulty_registry(memory) as server:
            registry, ref = client(server, LOGIN)
            async with registry:
                assert not await Pusher(registry).mount_blob(ref, sha256(SMALL), "other/app")


async def test_a_mount_that_begins_an_upload_instead(memory: UploadRegistry) -> None:
    async with faulty_registry(memory) as server:
        registry, ref = client(server)
        async with registry:
            assert not await Pusher(registry).mount_blob(ref, sha256(SMALL), "other/app")
    assert memory.cancelled == 1


# -- tokens ----------------------------------------------------------------------------------------


def token_server(memory: UploadRegistry, granted: list[str]) -> Handler:
    """Each token serves for two requests. ``granted`` notes the scopes that were asked for."""
    uses: dict[str, int] = {}

    def handle(request: Request) -> Reply:
        host = request.headers["host"]
        if request.path.startswith("/token"):
            granted.append(request.path)
            token = f"t{len(granted)}"
            uses[token] = 2
            return Reply(200, b'{"token":"%s","expires_in":300}' % token.encode())
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if uses.get(token, 0) <= 0:
            challenge = (
                f'Bearer realm="http://{host}/token",service="s",scope="repository:team/app:pull"'
            )
            return Reply(401, headers={"WWW-Authenticate": challenge})
        uses[token] -= 1
        return memory(request)

    return handle


@pytest.mark.parametrize("known", [True, False])
async def test_tokens_that_run_out(memory: UploadRegistry, known: bool) -> None:
    granted: list[str] = []
    content = Content(BIG, known=known)
    async with faulty_registry(token_server(memory, granted)) as server:
        registry, ref = client(server, LOGIN)
        async with registry:
            pusher = Pusher(registry)
            assert not await pusher.has_blob(ref, content.digest)
            await pusher.put_blob(ref, content.blob)
            await pusher.put_manifest(ref, ManifestBlob(b"{}", "x/y", sha256(b"{}")), "v1")
    assert memory.blobs[content.digest] == BIG
    # More than the challenge asks for: a push needs it.
    assert all("repository%3Ateam%2Fapp%3Apull%2Cpush" in path for path in granted)


async def test_a_silent_registry_ends_the_wait(memory: UploadRegistry) -> None:
    memory.breaks["POST"] = [lambda registry, request: Reply(silent=True)] * 50
    async with faulty_registry(memory) as server:
        registry, ref = client(server, retry_seconds=1.0)
        async with registry:
            with trio.fail_after(5), pytest.raises(NetworkError, match="silent"):
                await Pusher(registry).put_blob(ref, Content(SMALL).blob)


async def test_has_blob_where_storage_answers_get_only(memory: UploadRegistry) -> None:
    memory.breaks["HEAD"] = answer(307, Location="http://127.0.0.1:1/signed")
    async with faulty_registry(memory) as server:
        registry, ref = client(server)
        async with registry:
            assert await Pusher(registry).has_blob(ref, sha256(SMALL), len(SMALL))
            assert not await Pusher(registry).has_blob(ref, sha256(SMALL), len(SMALL))
            stored = await Pusher(registry).put_blob(ref, memory_content(b""))
    assert stored.size == 0
