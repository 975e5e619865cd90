"""Pushing to Debian's docker-registry: plain, htpasswd, TLS, tokens, redirects, broken lines."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio
from support.cutting_proxy import cutting_proxy
from support.registry import MANIFEST_TYPE, RealRegistry, sha256
from support.registry_client import FixedCredentials, without_environment
from support.streams import Content

from hybrid.config import CredentialConfig
from hybrid.core.byte_stream import BlobContent, ByteStream, memory_content, read_all
from hybrid.core.credentials import Credentials, Login
from hybrid.core.download import open_download
from hybrid.core.push import Pusher
from hybrid.core.reference import ManifestBlob, RegistryReference
from hybrid.core.registry import Registry, RegistrySettings
from hybrid.core.upload import Uploaded
from hybrid.errors import AuthError, FormatError, HybridError, NotFoundError

CHUNK_BYTES = 1 << 20
SMALL = Random(1).randbytes(300_000)
BIG = Random(2).randbytes(2 * CHUNK_BYTES + 12345)
ALICE = Login("alice", "wonder:land")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


@pytest.fixture(scope="module")
def plain() -> Iterator[RealRegistry]:
    with RealRegistry() as server:
        yield server


@pytest.fixture(scope="module")
def htpasswd() -> Iterator[RealRegistry]:
    with RealRegistry(auth="htpasswd") as server:
        yield server


@pytest.fixture(scope="module")
def token() -> Iterator[RealRegistry]:
    with RealRegistry(auth="token", anonymous_pull=True) as server:
        yield server


def client(login: Login | None = None, **changes: object) -> Registry:
    short: dict[str, object] = {
        "chunk_bytes": CHUNK_BYTES,
        "retry_seconds": 5.0,
        "first_pause_seconds": 0.02,
        "longest_pause_seconds": 0.1,
        "certs_directories": (),
    }
    return Registry(RegistrySettings(**{**short, **changes}), FixedCredentials(login))  # type: ignore[arg-type]


def uploaded_data(server: RealRegistry) -> list[Path]:
    """What unfinished uploads have left."""
    return list(server.storage_directory.glob("**/_uploads/*/data"))


@pytest.fixture(autouse=True)
def _no_old_uploads(plain: RealRegistry) -> None:
    for data in uploaded_data(plain):
        data.unlink()


@pytest.mark.parametrize(
    ("data", "known", "repeatable"),
    [
        (b"", True, True),
        (b"", False, False),
        (SMALL, True, True),
        (SMALL, False, False),
        (BIG, True, True),
        (BIG, True, False),
        (BIG, False, True),
        (BIG, False, False),
        (BIG[: 2 * CHUNK_BYTES], False, False),
    ],
)
async def test_upload_and_download(
    plain: RealRegistry, data: bytes, known: bool, repeatable: bool
) -> None:
    ref = RegistryReference(plain.host, f"up/{known}-{repeatable}-{len(data)}".lower())
    content = Content(data, known=known, repeatable=repeatable)
    steps: list[int] = []
    async with client() as registry:
        pusher = Pusher(registry)
        assert not await pusher.has_blob(ref, content.digest, len(data))
        stored = await pusher.put_blob(ref, content.blob, steps.append)
        assert stored == Uploaded(content.digest, len(data))
        assert sum(steps) == len(data)
        assert await pusher.has_blob(ref, content.digest, len(data))
        assert content.all_closed
        async with open_download(registry, ref, content.digest, len(data)) as stream:
            found = bytearray()
            while piece := await stream.read():
                found += piece
            assert await stream.read() == b""
    assert found == data
    assert not uploaded_data(plain)


async def test_a_blob_of_another_size_than_its_manifest_says(plain: RealRegistry) -> None:
    ref = RegistryReference(plain.host, "wrong/size")
    async with client() as registry:
        pusher = Pusher(registry)
        digest = (await pusher.put_blob(ref, memory_content(SMALL))).digest
        with pytest.raises(FormatError, match="300000 bytes there instead of 5"):
            await pusher.has_blob(ref, digest, 5)
        for size, problem in ((5, "300000 bytes"), (300_001, "300000 bytes")):
            async with open_download(registry, ref, digest, size) as stream:
                with pytest.raises(FormatError, match=problem):
                    await stream.read()


async def test_mount(plain: RealRegistry) -> None:
    source = RegistryReference(plain.host, "mount/source")
    target = RegistryReference(plain.host, "mount/target")
    async with client() as registry:
        pusher = Pusher(registry)
        digest = (await pusher.put_blob(source, memory_content(SMALL))).digest
        assert await pusher.mount_blob(target, digest, "mount/source")
        assert await pusher.has_blob(target, digest, len(SMALL))
        assert not await pusher.mount_blob(target, sha256(b"elsewhere"), "mount/source")
        assert not await pusher.mount_blob(target, digest[:-1] + "0", "no/such")
    assert not uploaded_data(plain)


async def test_a_manifest_by_digest_and_tag(plain: RealRegistry) -> None:
    ref = RegistryReference(plain.host, "with/manifest")
    async with client() as registry:
        pusher = Pusher(registry)
        manifest = await put_image(pusher, ref)
        assert not await pusher.has_manifest(ref, manifest.digest)
        await pusher.put_manifest(ref, manifest, manifest.digest)
        assert await pusher.has_manifest(ref, manifest.digest)
        with pytest.raises(NotFoundError):
            await registry.get_manifest(ref, "v1")
        await pusher.put_manifest(ref, manifest, "v1")
        assert await registry.get_manifest(ref, "v1") == manifest


async def put_image(pusher: Pusher, ref: RegistryReference) -> ManifestBlob:
    config = await pusher.put_blob(ref, memory_content(b"{}"))
    layer = await pusher.put_blob(ref, memory_content(SMALL))
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config._asdict()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", **layer._asdict()}],
    }
    data = json.dumps(document).encode()
    return ManifestBlob(data, MANIFEST_TYPE, sha256(data))


async def test_a_manifest_whose_blob_is_missing(plain: RealRegistry) -> None:
    ref = RegistryReference(plain.host, "missing/blob")
    other = RegistryReference(plain.host, "missing/other")
    async with client() as registry:
        pusher = Pusher(registry)
        manifest = await put_image(pusher, other)
        with pytest.raises(NotFoundError, match="lacks something that the manifest names"):
            await pusher.put_manifest(ref, manifest, "v1")


@pytest.mark.parametrize("repeatable", [True, False])
async def test_damaged_content_leaves_nothing(plain: RealRegistry, repeatable: bool) -> None:
    ref = RegistryReference(plain.host, "damaged/content")
    wrong = sha256(b"something else")
    for data in (SMALL, BIG):
        content = Content(data, digest=wrong, repeatable=repeatable)
        async with client() as registry:
            pusher = Pusher(registry)
            with pytest.raises(FormatError, match="digest"):
                await pusher.put_blob(ref, content.blob)
            assert not await pusher.has_blob(ref, wrong)
            assert not await pusher.has_blob(ref, content.digest)
        assert content.all_closed
    # Amid the one request for all of it, docker-registry forgets where to find what it has.
    assert repeatable or not uploaded_data(plain)


@pytest.mark.parametrize(("known", "repeatable"), [(True, True), (False, False), (False, True)])
async def test_content_that_fails(plain: RealRegistry, known: bool, repeatable: bool) -> None:
    ref = RegistryReference(plain.host, "failing/content")
    # Of a kind that the registry may raise too: it must not look as if that had refused.
    error = AuthError("the layer is not for you")
    content = Content(
        BIG, known=known, repeatable=repeatable, fails_at=CHUNK_BYTES + 5, error=error
    )
    async with client() as registry:
        with pytest.raises(AuthError) as caught:
            await Pusher(registry).put_blob(ref, content.blob)
    assert caught.value is error
    assert len(content.streams) == 1
    assert content.all_closed
    assert known or not uploaded_data(plain)


@pytest.mark.parametrize("known", [True, False])
async def test_a_cancelled_upload_ends_at_once(plain: RealRegistry, known: bool) -> None:
    ref = RegistryReference(plain.host, "cancelled/upload")
    content = Content(BIG, known=known)
    with trio.CancelScope() as scope:
        async with client() as registry:

            def advance(count: int) -> None:
                if sum(sent) > CHUNK_BYTES:
                    scope.cancel()
                sent.append(count)

            sent: list[int] = []
            await Pusher(registry).put_blob(ref, content.blob, advance)
    assert scope.cancelled_caught
    assert content.all_closed


# -- logins ----------------------------------------------------------------------------------------


async def test_htpasswd(htpasswd: RealRegistry) -> None:
    ref = RegistryReference(htpasswd.host, "team/app", "v1")
    async with client(ALICE) as registry:
        pusher = Pusher(registry)
        manifest = await put_image(pusher, ref)
        await pusher.put_manifest(ref, manifest, "v1")
        assert await pusher.mount_blob(
            RegistryReference(htpasswd.host, "b/c"), sha256(SMALL), "team/app"
        )
    for login in (None, Login("alice", "wrong")):
        async with client(login) as registry:
            pusher = Pusher(registry)
            with pytest.raises(AuthError, match=r"no permission to push to .*/team/app"):
                await pusher.has_blob(ref, sha256(SMALL))
            with pytest.raises(AuthError, match=r"no permission to push to .*/team/app"):
                await pusher.put_blob(ref, memory_content(SMALL))
            with pytest.raises(AuthError, match=r"no permission to push to .*/team/app"):
                await pusher.put_manifest(ref, manifest, "v1")


async def test_logins_of_docker(htpasswd: RealRegistry, tmp_path: Path) -> None:
    auth = base64.b64encode(b"alice:wonder:land").decode()
    config = {"auths": {htpasswd.host: {"auth": auth}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = CredentialConfig(file=tmp_path / "no-cred.json")
    credentials = Credentials(own, {"DOCKER_CONFIG": str(tmp_path)})
    ref = RegistryReference(htpasswd.host, "team/docker")
    async with Registry(RegistrySettings(certs_directories=()), credentials) as registry:
        assert (await Pusher(registry).put_blob(ref, memory_content(SMALL))).size == len(SMALL)


async def test_token_scopes(token: RealRegistry) -> None:
    ref = RegistryReference(token.host, "team/app", "v1")
    other = RegistryReference(token.host, "team/other")
    token.tokens.requests.clear()
    async with client(ALICE) as registry:
        pusher = Pusher(registry)
        manifest = await put_image(pusher, ref)
        await pusher.put_manifest(ref, manifest, "v1")
        assert [r["scope"] for r in token.tokens.requests] == ["repository:team/app:pull,push"]
        assert await pusher.mount_blob(other, sha256(SMALL), "team/app")
        asked = token.tokens.requests[-1]["scope"].split(" ")
        assert sorted(asked) == ["repository:team/app:pull", "repository:team/other:pull,push"]
        # Reading asks for no more than reading needs.
        await registry.get_manifest(ref)
        assert token.tokens.requests[-1]["scope"] == "repository:team/app:pull"


async def test_a_look_first_asks_for_pushing_too(token: RealRegistry) -> None:
    ref = RegistryReference(token.host, "team/looking")
    token.tokens.requests.clear()
    async with client(ALICE) as registry:
        pusher = Pusher(registry)
        assert not await pusher.has_blob(ref, sha256(SMALL))
        await pusher.put_blob(ref, memory_content(SMALL))
    assert [r["scope"] for r in token.tokens.requests] == ["repository:team/looking:pull,push"]


async def test_anonymous_may_only_pull(token: RealRegistry) -> None:
    ref = RegistryReference(token.host, "team/anonymous")
    async with client() as registry:
        pusher = Pusher(registry)
        with pytest.raises(AuthError, match=r"no permission to push to .*/team/anonymous"):
            await pusher.put_blob(ref, memory_content(SMALL))
        # Nothing was learned that stands in the way of pulling.
        with pytest.raises(NotFoundError):
            await registry.get_manifest(ref, "v1")


async def test_tls() -> None:
    with RealRegistry(tls=True, auth="htpasswd") as server:
        ref = RegistryReference(server.host, "over/tls")
        certs = server.directory / "certs.d" / server.host
        certs.mkdir(parents=True)
        (certs / "ca.crt").write_bytes(server.ca_file.read_bytes())
        content = Content(BIG, known=False, repeatable=False)
        async with client(ALICE, certs_directories=(server.directory / "certs.d",)) as registry:
            pusher = Pusher(registry)
            assert (await pusher.put_blob(ref, content.blob)).digest == content.digest
            await pusher.put_blob(ref, Content(BIG[1:]).blob)
        async with client(ALICE) as registry:
            with pytest.raises(HybridError, match="not trusted"):
                await Pusher(registry).put_blob(ref, memory_content(SMALL))


async def test_storage_elsewhere() -> None:
    with RealRegistry(redirect=True) as server:
        ref = RegistryReference(server.host, "redirected/blobs")
        async with client() as registry:
            pusher = Pusher(registry)
            await pusher.put_blob(ref, Content(BIG).blob)
            assert await pusher.has_blob(ref, sha256(BIG), len(BIG))
            assert not await pusher.has_blob(ref, sha256(SMALL), len(SMALL))
            for _ in range(2):
                async with open_download(registry, ref, sha256(BIG), len(BIG)) as stream:
                    found = bytearray()
                    while piece := await stream.read():
                        found += piece
                assert found == BIG
        assert not any(sent for _, _, sent in server.storage.requests)


# -- broken lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("where", [1000, CHUNK_BYTES // 2, CHUNK_BYTES + 300_000, len(BIG)])
async def test_a_line_that_breaks_while_uploading(
    plain: RealRegistry, known: bool, where: int
) -> None:
    content = Content(BIG, known=known)
    steps: list[int] = []
    async with cutting_proxy(plain.host) as proxy, client() as registry:
        proxy.cut("up", where)
        ref = RegistryReference(proxy.host, f"broken/up-{known}-{where}".lower())
        stored = await Pusher(registry).put_blob(ref, content.blob, steps.append)
        assert proxy.cuts_left == 0
    assert stored == Uploaded(content.digest, len(BIG))
    assert sum(steps) == len(BIG)
    assert content.all_closed


async def test_a_line_that_loses_the_last_answer(plain: RealRegistry) -> None:
    async with cutting_proxy(plain.host) as proxy, client() as registry:
        ref = RegistryReference(proxy.host, "lost/answer")
        pusher = Pusher(registry)
        await pusher.has_blob(ref, sha256(BIG))
        before = proxy.passed["down"]
        await pusher.put_blob(ref, memory_content(SMALL))
        length = proxy.passed["down"] - before
        proxy.cut("down", length - 10)
        content = Content(BIG)
        assert (await pusher.put_blob(ref, content.blob)).digest == content.digest
        assert proxy.cuts_left == 0
        # It was found to be there, and not sent again.
        assert proxy.passed["up"] < 1.5 * len(BIG)


async def test_a_line_that_breaks_while_downloading(plain: RealRegistry) -> None:
    digest = plain.push_blob("broken/down", BIG)
    async with cutting_proxy(plain.host) as proxy, client() as registry:
        ref = RegistryReference(proxy.host, "broken/down")
        proxy.cut("down", 500_000, times=3)
        async with open_download(registry, ref, digest, len(BIG)) as stream:
            found = bytearray()
            while piece := await stream.read():
                found += piece
        assert proxy.cuts_left == 0
        assert found == BIG
        # Each broken connection went on where the last one ended.
        assert proxy.passed["down"] < len(BIG) + 100_000


async def test_one_that_cannot_be_read_again_says_so(plain: RealRegistry) -> None:
    """docker-registry cannot continue amid a chunk: build/spool.py is what helps."""
    content = Content(BIG, known=False, repeatable=False)
    async with cutting_proxy(plain.host) as proxy, client() as registry:
        proxy.cut("up", CHUNK_BYTES + 300_000)
        ref = RegistryReference(proxy.host, "broken/once")
        with pytest.raises(HybridError, match="the registry cannot go on from there"):
            await Pusher(registry).put_blob(ref, content.blob)
        assert not await Pusher(registry).has_blob(ref, content.digest)


async def test_a_registry_that_comes_back(plain: RealRegistry) -> None:
    ref = RegistryReference(plain.host, "comes/back")
    async with client() as registry:
        pusher = Pusher(registry)
        assert not await pusher.has_blob(ref, sha256(SMALL))
        plain.stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.put_blob, ref, memory_content(SMALL))
            await trio.sleep(0.05)
            plain.start()
        assert await pusher.has_blob(ref, sha256(SMALL))


async def test_many_at_once(plain: RealRegistry) -> None:
    """More than there are connections: downloads and uploads do not wait for each other."""
    blobs = [Random(n).randbytes(400_000) for n in range(12)]
    source = RegistryReference(plain.host, "many/source")
    target = RegistryReference(plain.host, "many/target")
    async with client(max_connections=4) as registry:
        pusher = Pusher(registry)

        async def move(data: bytes) -> None:
            stored = await pusher.put_blob(source, memory_content(data))

            async def opened() -> ByteStream:
                return open_download(registry, source, stored.digest, stored.size)

            content = BlobContent(opened, stored.digest, stored.size)
            await pusher.put_blob(target, content)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for data in blobs:
                    nursery.start_soon(move, data)
        for data in blobs:
            assert await pusher.has_blob(target, sha256(data))


async def test_read_all(plain: RealRegistry) -> None:
    content = memory_content(SMALL)
    assert await read_all(content, len(SMALL)) == SMALL
    with pytest.raises(FormatError, match="more than 5 bytes"):
        await read_all(content, 5)
