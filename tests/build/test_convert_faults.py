"""Conversions between registries that misbehave: they recover, or nothing has the name."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support import oci
from support.faulty_registry import Reply, Request, faulty_registry
from support.plain_images import PlainImage, rich_layers
from support.upload_registry import UploadRegistry, answer, half_then, pass_by

from hybrid.build.convert.convert import ConvertResult, convert_image
from hybrid.build.convert.lower import LowerBlobs
from hybrid.build.convert.memory import Memory
from hybrid.build.convert.options import Options
from hybrid.build.convert.run import Run
from hybrid.build.opening import open_image_destination, open_image_source
from hybrid.build.selection import EVERYTHING
from hybrid.config import load_global_config
from hybrid.core.manifest import parse_document
from hybrid.core.reference import ManifestBlob
from hybrid.errors import AuthError, FormatError, NetworkError

IMAGE = PlainImage(rich_layers())


async def convert(source: str, destination: str, directory: Path) -> ConvertResult:
    config = replace(load_global_config(), retry_seconds=1.0, cache_dir=directory / "cache")
    async with AsyncExitStack() as stack:
        memory = Memory(config.cache_dir)
        stack.callback(memory.close)
        run = Run(
            await open_image_source(source, config, stack),
            await open_image_destination(destination, config, stack),
            LowerBlobs(destination, config, insecure=False),
            Options(size=64 << 20, threads=2),
            memory,
            directory,
        )
        return await convert_image(run, EVERYTHING, destination)


def source_layout(directory: Path) -> str:
    IMAGE.put(oci.LayoutBuilder(directory / "source"), "v1")
    return f"oci:{directory}/source:v1"


async def test_uploads_that_break(tmp_path: Path) -> None:
    memory = UploadRegistry()
    memory.breaks["POST"] = [pass_by, *answer(503)]
    memory.breaks["PUT"] = [pass_by, *answer(500)]
    async with faulty_registry(memory, hang_up_on_tls=True) as server:
        result = await convert(source_layout(tmp_path), f"{server.host}/app:v1", tmp_path)
    manifest = memory.manifests["v1"]
    assert oci.digest_of(manifest) == result.digest
    for layer in parse_document(ManifestBlob(manifest, "", result.digest)).layers:  # type: ignore[union-attr]
        assert len(memory.blobs[layer.digest]) == layer.size


@pytest.mark.parametrize(
    ("method", "status", "error"), [("POST", 403, AuthError), ("PUT", 500, NetworkError)]
)
async def test_uploads_that_are_refused(
    tmp_path: Path, method: str, status: int, error: type[Exception]
) -> None:
    memory = UploadRegistry()
    memory.breaks[method] = answer(*[status] * 100)
    async with faulty_registry(memory, hang_up_on_tls=True) as server:
        with pytest.raises(error):
            await convert(source_layout(tmp_path), f"{server.host}/app:v1", tmp_path)
    assert not memory.manifests


class Serving:
    """Serves the plain image; ``spoil`` changes answers with its layers."""

    def __init__(self) -> None:
        self.blobs = {oci.digest_of(x): x for x in (IMAGE.config_data(), *IMAGE.blobs())}
        self.cuts = 2
        self.flipped = b""

    def __call__(self, request: Request) -> Reply:
        if "/manifests/" in request.path:
            return Reply(200, IMAGE.manifest(), {"Content-Type": oci.OCI_MANIFEST})
        data = self.blobs[request.path.rpartition("/")[2]]
        first = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        status, body = (206, data[first:]) if first else (200, data)
        if data == self.flipped:
            body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
        if len(data) > 2000 and self.cuts:
            self.cuts -= 1
            return Reply(status, body, headers if first else {}, cut_after=len(body) // 2)
        return Reply(status, body, headers if first else {})


async def test_downloads_that_break(tmp_path: Path) -> None:
    serving = Serving()
    async with faulty_registry(serving, hang_up_on_tls=True) as server:
        result = await convert(f"{server.host}/app:v1", f"oci:{tmp_path}/target:v1", tmp_path)
    assert serving.cuts == 0
    again = await convert(source_layout(tmp_path), f"oci:{tmp_path}/other:v1", tmp_path / "new")
    assert again.digest == result.digest


async def test_downloads_that_lie(tmp_path: Path) -> None:
    serving = Serving()
    serving.flipped = IMAGE.blobs()[2]
    async with faulty_registry(serving, hang_up_on_tls=True) as server:
        with pytest.raises(FormatError):
            await convert(f"{server.host}/app:v1", f"oci:{tmp_path}/target:v1", tmp_path)
    assert not (tmp_path / "target/index.json").exists()


async def test_half_an_upload(tmp_path: Path) -> None:
    """A chunk of which half arrived: what is stored is whole all the same."""
    memory = UploadRegistry()
    memory.breaks["PATCH"] = [half_then(Reply(503))]
    async with faulty_registry(memory, hang_up_on_tls=True) as server:
        result = await convert(source_layout(tmp_path), f"{server.host}/app:v1", tmp_path)
    assert result.digest == oci.digest_of(memory.manifests["v1"])
    assert all(oci.digest_of(data) == digest for digest, data in memory.blobs.items())
