"""Conformance: what the reference implementation wrote must read as the reference read it.

The vectors and their expected contents come from ``tests/data`` (see its README).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import golden
from support.golden import Row
from support.golden_disk import check_disk, disk_of, open_disk, pieces, read, source_of
from support.implementations import IMPLEMENTATIONS, using

from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.opening import open_layer, open_stream
from hybrid.errors import FormatError, HybridError, UnsupportedError


@pytest.fixture(autouse=True, scope="module", params=IMPLEMENTATIONS)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


async def stream_bytes(blob: bytes | Path) -> bytes:
    """All that a ZFile expands to, after its head was checked as the product does it."""
    source = source_of(blob)
    try:
        stream, _ = await open_stream(source)
        return await stream.read(0, stream.size)
    finally:
        await source.aclose()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_segments(disk: LayeredDevice, path: Path) -> None:
    wanted = golden.segments_of(path)
    assert [tuple(segment) for segment in disk.segments] == wanted.segments
    assert disk.size == wanted.vsize


def test_the_archive_is_the_one_that_was_made() -> None:
    tree = golden.tree()
    lines = (tree / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split(maxsplit=1)
        assert sha256((tree / name.lstrip("*")).read_bytes()) == digest, name
    assert len(lines) > 200


# --- ZFiles


@pytest.mark.parametrize("row", golden.vectors("zfile"))
async def test_zfile_vector_expands_to_the_plain_file(row: Row) -> None:
    # The random1m.*-64k vectors are among them: the reference cannot read those, hybrid must.
    data = await stream_bytes(golden.tree() / "zfile" / row["name"])
    assert sha256(data) == row["plain_sha256"]


def test_the_vectors_that_the_reference_cannot_read_are_there() -> None:
    unreadable = [row["name"] for row in golden.rows("zfile") if row["ref_extract_rc"]]
    assert unreadable
    assert all(name.startswith("random1m.") for name in unreadable)


# --- small layers


def blobs_of(row: Row) -> list[bytes]:
    if row["name"] == "s255":
        return golden.layers_of_s255()
    return [golden.data_of(f"lsmt/{name}") for name in row["layers"]]


@pytest.mark.parametrize("row", golden.vectors("lsmt", lambda row: "layers" in row))
async def test_lsmt_vector(row: Row) -> None:
    async with open_disk(blobs_of(row)) as disk:
        assert disk.size == row.get("vsize", disk.size)
        assert sha256(await read(disk, 0, disk.size)) == row["raw_sha256"]
        if "segments" in row:
            check_segments(disk, golden.tree() / "lsmt" / row["segments"])


@pytest.mark.parametrize("row", golden.vectors("lsmt", lambda row: "layers" in row))
async def test_lsmt_vector_reads_zeros_without_asking_a_layer(row: Row) -> None:
    async with open_disk(blobs_of(row)) as disk:
        whole = await read(disk, 0, disk.size)
        expected = golden.Expected(len(whole), row["raw_sha256"], (golden.Run(0, whole),))
        await check_disk(disk, expected)
        for zeros, offset, length in pieces(disk):
            if zeros:
                assert not any(whole[offset : offset + length])


# --- whole images


def lowers_of(folder: Path, config: str) -> list[Path]:
    lowers = json.loads((folder / config).read_text())["lowers"]
    return [folder / lower["file"] for lower in lowers]


READ_ONLY_IMAGES = ("L0", "L1", "img3", "img3merged")


@pytest.mark.parametrize("name", READ_ONLY_IMAGES)
async def test_image_vector(name: str) -> None:
    folder = golden.tree() / "img"
    async with open_disk(lowers_of(folder, f"{name}.config.json")) as disk:
        check_segments(disk, folder / f"{name}.segments.txt")
        await check_disk(disk, golden.expected("img", name))


async def test_whole_image_has_the_digest_that_the_reference_read() -> None:
    expected = golden.expected("img", "img3")
    folder = golden.tree() / "img"
    total = hashlib.sha256()
    async with open_disk(lowers_of(folder, "img3.config.json")) as disk:
        for offset in range(0, disk.size, golden.CHUNK):
            total.update(await read(disk, offset, golden.CHUNK))
    assert total.hexdigest() == expected.sha256


def l1_variants() -> list[tuple[str, str]]:
    lines = (golden.tree() / "img/L1.variants.raw_sha256").read_text().splitlines()
    return [(name, digest) for name, digest in map(str.split, lines)]


@pytest.mark.parametrize(("name", "digest"), l1_variants(), ids=[name for name, _ in l1_variants()])
async def test_every_encoding_of_a_layer_has_the_same_content(name: str, digest: str) -> None:
    expected = golden.expected("img", "L1")
    assert expected.sha256 == digest
    async with open_disk([golden.tree() / "img" / name]) as disk:
        await check_disk(disk, expected)


@pytest.mark.parametrize(
    "names",
    [
        ("L1.lsmt", "L2.lsmt", "L3.lsmt"),
        ("L1.zstd-64k.tar", "L2.zstd-16k", "L3.lz4-16k"),
        ("L1.lz4-8k", "L2.lz4-4k.tar", "L3s.lz4-4k.tar"),
    ],
    ids=["plain", "mixed", "from-sparse"],
)
async def test_other_encodings_of_the_three_layer_image(names: tuple[str, ...]) -> None:
    folder = golden.tree() / "img"
    async with open_disk([folder / name for name in names]) as disk:
        await check_disk(disk, golden.expected("img", "img3"))


async def test_layer_sealed_in_place_in_a_sparse_file(tmp_path: Path) -> None:
    (sealed,) = golden.unpack_sparse("img/L3s.sealed.sparse.tar.zst", tmp_path)
    folder = golden.tree() / "img"
    async with open_disk([folder / "L1.lsmt", folder / "L2.lsmt", sealed]) as disk:
        assert disk.layers[2].record.sparse
        await check_disk(disk, golden.expected("img", "img3"))


@pytest.mark.skipif(
    not golden.base64g_archive().is_file(),
    reason=f"base64g.tar.zst is not here; {golden.BASE64G_VARIABLE} can name it",
)
async def test_64_gib_image_over_the_stock_base_layer() -> None:
    root = golden.base64g()
    folder = root / "img"
    (row,) = (json.loads(line) for line in (folder / "vectors.jsonl").read_text().splitlines())
    async with open_disk(lowers_of(folder, row["config"])) as disk:
        base = disk.layers[0].record
        assert base.uuid == "C02FB491-B4D4-4904-8684-A014D032AF78"
        assert (base.index_offset, base.index_size) == (541798400, 8448)
        check_segments(disk, folder / "img64.segments.txt")
        await check_disk(disk, golden.expected_of(folder, row))


# --- damaged files


GOOD = {  # vectors that are whole, or whose loss the format makes good
    "ok.zf": "ok.zf", "ok.tar.zf": "ok.zf",
    "ok.lsmt": "ok.lsmt", "ok.commit": "ok.lsmt",
    "commit-trailer-flip.zf": "ok.lsmt", "commit-trailer-lost.zf": "ok.lsmt",
    "lsmt-seg-len0.lsmt": "ok.lsmt",
}  # fmt: skip


async def read_bad(name: str) -> bytes:
    """Read a file of bad/ in the way its vector was made: as a ZFile, or as a layer."""
    path = golden.tree() / "bad" / name
    if name.startswith(("zf-", "ok.zf", "ok.tar")):
        return await stream_bytes(path)
    return await disk_of([path])


def digest_of_bad(name: str) -> str:
    row = golden.row_of("bad", name)
    return str(row.get("raw_sha256") or row["out_sha256"])


@pytest.mark.parametrize("name", GOOD)
async def test_whole_file_of_the_bad_directory(name: str) -> None:
    assert sha256(await read_bad(name)) == digest_of_bad(GOOD[name])


@pytest.mark.parametrize("row", golden.vectors("bad", lambda row: row["name"] not in GOOD))
async def test_damaged_file_gives_a_format_error(row: Row) -> None:
    with pytest.raises(FormatError) as caught:
        await read_bad(row["name"])
    assert row["name"] in caught.value.message
    assert "\n" not in str(caught.value)


# --- through the image layer


@pytest.fixture
def config(tmp_path: Path) -> GlobalConfig:
    return replace(load_global_config(), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", READ_ONLY_IMAGES)
async def test_image_opened_by_its_config(name: str, config: GlobalConfig) -> None:
    folder = golden.tree() / "img"
    image = await open_image(ImageRequest(str(folder / f"{name}.config.json"), config))
    try:
        check_segments(image, folder / f"{name}.segments.txt")
        await check_disk(image, golden.expected("img", name))
    finally:
        await image.aclose()


# --- images with a writable layer on top


def configs_of_writable_images() -> list[str]:
    found = []
    for directory in ("img", "lsmt"):
        for row in golden.rows(directory):
            name = row.get("config")
            if name and "upper" in json.loads((golden.tree() / directory / name).read_text()):
                found.append(f"{directory}/{name}")
    return found


def test_the_vectors_of_writable_images_are_there() -> None:
    assert [Path(name).name.split(".")[0] for name in configs_of_writable_images()] == [
        "img2rw", "img2sp", "img-v0", "w", "wu",
    ]  # fmt: skip


@pytest.mark.parametrize("name", configs_of_writable_images())
async def test_image_with_a_writable_layer(name: str, config: GlobalConfig, tmp_path: Path) -> None:
    directory, file = name.split("/")
    copy = golden.writable_copy(directory, file, tmp_path)
    image = await open_image(ImageRequest(str(copy), config))
    try:
        await check_disk(image, golden.expected(directory, file.partition(".")[0]))
    finally:
        await image.aclose()


# --- kinds of layers that hybrid cannot use yet


@pytest.mark.parametrize("row", golden.vectors("turbooci"))
async def test_turbooci_image_is_refused(row: Row, config: GlobalConfig) -> None:
    path = golden.tree() / "turbooci" / row["config"]
    with pytest.raises(UnsupportedError, match="TurboOCI"):
        await open_image(ImageRequest(str(path), config))


def turbo_metas() -> list[str]:
    configs = (row["config"] for row in golden.rows("turbooci"))
    folder = golden.tree() / "turbooci"
    return sorted({path.name for config in configs for path in lowers_of(folder, config)})


@pytest.mark.parametrize("name", turbo_metas())
async def test_turbooci_layer_alone_is_an_error(name: str) -> None:
    # Without its target such a layer must never be served as if it were an ordinary one.
    with pytest.raises(HybridError):
        async with open_disk([golden.tree() / "turbooci" / name]):
            pass


@pytest.mark.parametrize("name", ["L1.data", "L2.data", "L3.data", "V0.data"])
async def test_unsealed_data_file_is_no_layer(name: str) -> None:
    source = source_of(golden.tree() / "img" / name)
    with pytest.raises((FormatError, UnsupportedError)):
        await open_layer(source)
    await source.aclose()


async def test_committed_layers_keep_their_names() -> None:
    folder = golden.tree() / "img"
    async with open_disk([folder / f"{x}.lsmt" for x in ("L1", "L2", "L3")]) as disk:
        one, two, three = (layer.record for layer in disk.layers)
    assert one.uuid == "AAAAAAAA-1111-4111-8111-111111111111"
    assert (two.parent_uuid, three.parent_uuid) == (one.uuid, two.uuid)
    assert three.user_tag == b"golden commit message"
    assert one.parent_uuid == ""
