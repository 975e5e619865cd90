"""Whole blobs from servers that misbehave: the right bytes, or an error before their end."""

import gzip
import hashlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.faulty_registry import Reply, Request, faulty_registry, range_reply
from support.registry_client import DATA, DIGEST, client, sequence, without_environment

from hybrid.core.byte_stream import MemoryStream, VerifiedStream
from hybrid.core.download import open_download
from hybrid.errors import AuthError, FormatError, HybridError, NetworkError, NotFoundError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_environment(monkeypatch)


def from_there(request: Request) -> Reply:
    """As a registry answers ``bytes=100-4095``."""
    return range_reply(DATA, request)


async def download(*replies: object, **changes: object) -> bytes:
    data = bytearray()
    failure = None
    async with faulty_registry(sequence(*replies)) as server:  # type: ignore[arg-type]
        registry, ref = client(server, **changes)
        async with registry, open_download(registry, ref, DIGEST, len(DATA)) as stream:
            try:
                while piece := await stream.read():
                    data += piece
            except HybridError as error:
                failure = error
    if failure is not None:
        raise failure
    return bytes(data)


OTHER_PART = Reply(206, DATA[:3096], {"Content-Range": "bytes 0-3095/4096"})


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(200, DATA)],
        [Reply(200, DATA, stated_length=-1)],
        [Reply(503), Reply(drop=True), from_there],
        [Reply(200, DATA, cut_after=1000), from_there],
        [Reply(200, DATA, cut_after=0), from_there],
        [Reply(200, DATA, cut_after=len(DATA) - 1), Reply(503), from_there],
        # A server that does not know ranges sends everything again.
        [Reply(200, DATA, cut_after=1000), Reply(200, DATA, cut_after=2000), Reply(200, DATA)],
        [Reply(200, DATA, cut_after=1000), Reply(200, DATA, cut_after=500), from_there],
        [Reply(silent=True), from_there],
    ],
)
async def test_the_right_bytes_in_the_end(replies: list[object]) -> None:
    assert await download(*replies) == DATA


@pytest.mark.parametrize(
    ("replies", "error", "words"),
    [
        ([Reply(404)], NotFoundError, "404"),
        ([Reply(403)], AuthError, "403"),
        ([Reply(200, DATA[:-1])], FormatError, "4095 bytes, the manifest says 4096"),
        ([Reply(200, DATA + b"x")], FormatError, "4097 bytes, the manifest says 4096"),
        ([Reply(200, DATA + b"x", stated_length=-1)], FormatError, "more than the 4096 bytes"),
        ([Reply(200, DATA[:-1] + b"x")], FormatError, "have the digest"),
        ([Reply(200, DATA[::-1], cut_after=1000), from_there], FormatError, "have the digest"),
        (
            [Reply(200, gzip.compress(DATA), {"Content-Encoding": "gzip"})],
            NetworkError,
            "encoded",
        ),
        (
            [Reply(200, DATA, cut_after=1000), OTHER_PART],
            NetworkError,
            "were asked for, but the answer has 0-3095/4096",
        ),
        ([Reply(200, DATA, cut_after=1000), Reply(416)], FormatError, "shorter"),
        ([Reply(200, DATA, cut_after=1000), Reply(404)], NotFoundError, "404"),
        ([Reply(503)], NetworkError, "tried"),
        ([Reply(200, DATA, cut_after=0)], NetworkError, "tried"),
        (
            [Reply(200, DATA, cut_after=1000), Reply(silent=True)],
            NetworkError,
            r"silent|broke|no answer",
        ),
    ],
)  # fmt: skip
async def test_errors(replies: list[object], error: type[HybridError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        await download(*replies, retry_seconds=0.5)
    assert "\n" not in str(caught.value)


async def test_nobody_is_told_of_the_end_before_it_was_checked() -> None:
    """The last piece may have been given, but not the end."""
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    async with faulty_registry(lambda request: Reply(200, wrong)) as server:
        registry, ref = client(server)
        async with registry, open_download(registry, ref, DIGEST, len(DATA)) as stream:
            got = await stream.read()
            assert got == wrong
            with pytest.raises(FormatError):
                await stream.read()


async def test_closed_in_the_middle() -> None:
    """The connection goes back or ends; nothing is left unfinished."""
    async with faulty_registry(lambda request: Reply(200, DATA * 500)) as server:
        registry, ref = client(server)
        async with registry:
            for _ in range(20):  # more than there are connections
                stream = open_download(registry, ref, DIGEST, len(DATA) * 500)
                await stream.read()
                await stream.aclose()
                await stream.aclose()


async def test_cancelled_in_the_middle() -> None:
    async with faulty_registry(lambda request: Reply(200, DATA, silent=True)) as server:
        registry, ref = client(server, read_seconds=20.0)
        async with registry:
            for _ in range(20):
                with trio.move_on_after(0.01):
                    async with open_download(registry, ref, DIGEST, len(DATA)) as stream:
                        await stream.read()


@given(st.binary(max_size=300), st.integers(0, 310), st.sampled_from(["right", "wrong", ""]))
def test_verified_streams(data: bytes, size: int, digest: str) -> None:
    stated = {
        "right": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "wrong": f"sha256:{hashlib.sha256(data + b'x').hexdigest()}",
        "": "",
    }[digest]

    async def read() -> bytes:
        async with VerifiedStream(MemoryStream(data), stated, size) as stream:
            found = b""
            while piece := await stream.read():
                found += piece
            return found

    if size == len(data) and digest != "wrong":
        assert trio.run(read) == data
    else:
        with pytest.raises(FormatError):
            trio.run(read)
