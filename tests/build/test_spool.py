"""What passes only once is sent again from a copy on disk."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from support.cutting_proxy import cutting_proxy
from support.registry import RealRegistry
from support.streams import Content

from hybrid.build.registry_image import RegistryImageDestination
from hybrid.build.spool import Spool
from hybrid.core.byte_stream import ByteStream
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry, RegistrySettings
from hybrid.errors import NotFoundError, StorageFullError

DATA = Random(4).randbytes(2_500_000)


@pytest.fixture(scope="module")
def server() -> Iterator[RealRegistry]:
    with RealRegistry() as registry:
        yield registry


async def read(stream: ByteStream, length: int = 1 << 40) -> bytes:
    data = bytearray()
    while len(data) < length and (piece := await stream.read()):
        data += piece
    return bytes(data)


async def test_again_from_any_place(tmp_path: Path) -> None:
    content = Content(DATA, known=False, repeatable=False)
    async with Spool(content.blob, tmp_path / "made" / "here") as spool:
        for length in (0, 500_000, 100, 2_000_000, len(DATA), len(DATA)):
            async with await spool.content.open() as stream:
                found = await read(stream, length)
                assert len(found) >= length
                assert DATA.startswith(found)
        async with await spool.content.open() as stream:
            assert await read(stream) == DATA
            assert await stream.read() == b""
    assert len(content.streams) == 1
    assert content.all_closed
    assert not list((tmp_path / "made" / "here").iterdir())


async def test_its_errors_come_when_they_came(tmp_path: Path) -> None:
    error = NotFoundError("the layer has gone")
    content = Content(DATA, repeatable=False, fails_at=1_000_000, error=error)
    async with Spool(content.blob, tmp_path) as spool:
        for _ in range(2):
            stream = await spool.content.open()
            with pytest.raises(NotFoundError, match="has gone"):
                await read(stream)


async def test_without_space_it_passes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    content = Content(DATA, repeatable=False)
    async with Spool(content.blob, tmp_path) as spool:
        stream = await spool.content.open()
        monkeypatch.setattr("os.pwrite", full)
        assert await read(stream) == DATA
        with pytest.raises(StorageFullError):
            await spool.content.open()


@pytest.mark.parametrize("where", [10_000, 700_000, 1_200_000, 2_400_000])
async def test_a_line_that_breaks(server: RealRegistry, tmp_path: Path, where: int) -> None:
    """A registry that cannot continue, and a stream that cannot be read again."""
    content = Content(DATA, known=False, repeatable=False)
    settings = RegistrySettings(chunk_bytes=1 << 19, first_pause_seconds=0.01, certs_directories=())
    steps: list[int] = []
    async with cutting_proxy(server.host) as proxy, Registry(settings) as registry:
        proxy.cut("up", where)
        ref = RegistryReference(proxy.host, "spooled/blob", "v1")
        destination = RegistryImageDestination(registry, ref, tmp_path / "uploads")
        put = await destination.put_blob(content.blob, steps.append)
        assert proxy.cuts_left == 0
        assert await destination.has_blob(content.digest, len(DATA))
    assert (put.digest, put.size, put.how) == (content.digest, len(DATA), "written")
    assert sum(steps) == len(DATA)
    assert not list((tmp_path / "uploads").iterdir())
