"""The verbs of `hybrid layer` that make and check layers, on real files, as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from support import golden
from support.builders import ParsedLsmt, Write, build_append_rw, build_lsmt, parse_lsmt
from support.commands import fail, run, succeed, succeed_json
from support.stacks import unwrapped

from hybrid.build.blob_writer import Wrapping
from hybrid.errors import (
    BusyError,
    FormatError,
    NotFoundError,
    SystemSupportError,
    UnsupportedError,
    UsageError,
)

PAIRS = ("a", "b", "g255", "g257", "h")
UUID = "11111111-2222-4333-8444-555555555555"
PLAIN = ("--compress", "none", "--no-tar")


def pair(name: str, directory: Path) -> tuple[Path, Path]:
    """A golden writable pair; a sparse one has an empty index file."""
    folder = golden.tree() / "lsmt"
    golden.copy_writable(folder, f"{name}.data", directory)
    index = directory / f"{name}.index"
    if (folder / f"{name}.index").exists():
        golden.copy_writable(folder, f"{name}.index", directory)
    else:
        index.touch()
    return directory / f"{name}.data", index


def sectors_of(parsed: ParsedLsmt) -> set[int]:
    return {s for entry in parsed.entries for s in range(entry.offset, entry.end)}


def raw_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- create


def test_create(tmp_path: Path) -> None:
    data, index = tmp_path / "d", tmp_path / "i"
    succeed("layer", "create", data, index, "64m", "--parent-uuid", UUID.lower())
    (found,) = succeed_json("layer", "info", f"{data}+{index}")["layers"]
    assert found["virtual_size"] == 64 << 20
    assert found["parent_uuid"] == UUID
    assert (found["segments"], found["live_bytes"], found["dead_bytes"]) == (0, 0, 0)
    assert data.stat().st_size == index.stat().st_size == 4096
    fail(BusyError.exit_code, "layer", "create", data, index, "64m")
    assert "is no size" in fail(UsageError.exit_code, "layer", "create", "x", "y", "64q")
    assert "whole sectors" in fail(UsageError.exit_code, "layer", "create", "x", "y", "1000")
    assert "is no uuid" in fail(2, "layer", "create", "x", "y", "1g", "--parent-uuid", "1")


# --- info


def test_info_of_a_writable_layer(tmp_path: Path) -> None:
    writes = [Write(0, b"a" * 4096), Write(0, b"b" * 2048), Write(100, 50)]
    data, index = build_append_rw(writes, 1 << 20, uuid=UUID)
    (tmp_path / "d").write_bytes(data)
    (tmp_path / "i").write_bytes(index)
    (found,) = succeed_json("layer", "info", f"{tmp_path / 'd'}+{tmp_path / 'i'}")["layers"]
    assert found["writable"] == "append-only"
    assert found["uuid"] == UUID
    assert found["segments"] == 3
    assert found["live_bytes"] == 4096
    assert found["dead_bytes"] == 2048
    assert (found["index_entries"], found["unflushed_entries"]) == (3, 0)
    text = succeed("layer", "info", f"{tmp_path / 'd'}+{tmp_path / 'i'}", "--segments")
    assert "dead bytes:        2048" in text
    assert text.endswith("\n0 4 16 0 0\n4 4 12 0 0\n100 50 20 1 0\n")


def test_info_of_a_sparse_layer(tmp_path: Path) -> None:
    data, index = pair("d", tmp_path)
    (found,) = succeed_json("layer", "info", f"{data}+{index}")["layers"]
    assert found["writable"] == "sparse"
    assert found["virtual_size"] == golden.row_of("lsmt", "d")["vsize"]


def test_a_plus_in_a_name(tmp_path: Path) -> None:
    layer = tmp_path / "a+b"
    layer.write_bytes(build_lsmt([], 1 << 20))
    assert len(succeed_json("layer", "info", layer)["layers"]) == 1
    data, index = build_append_rw([], 1 << 20)
    for name, content in (("d+", data), ("+i", index)):
        (tmp_path / name).write_bytes(content)
    assert len(succeed_json("layer", "info", f"{tmp_path}/d++{tmp_path}/+i")["layers"]) == 1
    assert "no such file" in fail(NotFoundError.exit_code, "layer", "info", tmp_path / "x+y")


# --- commit


@pytest.mark.parametrize("name", PAIRS)
def test_commit_of_golden_pairs(name: str, tmp_path: Path) -> None:
    """The content of the reference's own commit, mapped alike; zeros are zeroed segments here."""
    data, index = pair(name, tmp_path)
    before = (data.read_bytes(), index.read_bytes())
    told = succeed_json("layer", "commit", data, index, "-o", tmp_path / "out", *PLAIN)
    assert (data.read_bytes(), index.read_bytes()) == before
    parsed = parse_lsmt((tmp_path / "out").read_bytes())
    wanted = parse_lsmt(golden.data_of(f"lsmt/{name}.commit"))
    assert parsed.disk == wanted.disk
    assert sectors_of(parsed) == sectors_of(wanted)
    assert parsed.header["virtual_size"] == wanted.header["virtual_size"]
    assert told["digest"] == "sha256:" + raw_digest(tmp_path / "out")
    data_sectors = sum(e.length for e in parsed.entries if not e.zeroed)
    assert told["data_bytes"] == data_sectors * 512
    for entry in wanted.entries:
        # What the reference stores and we do not, is zeros.
        if entry.zeroed:
            continue
        for sector in range(entry.offset, entry.end):
            zeroed = any(e.zeroed and e.offset <= sector < e.end for e in parsed.entries)
            assert not zeroed or not any(wanted.disk[sector * 512 : (sector + 1) * 512])


def test_commit_of_a_sparse_pair(tmp_path: Path) -> None:
    data, index = pair("d", tmp_path)
    succeed("layer", "commit", data, index, "-o", tmp_path / "out", *PLAIN)
    assert parse_lsmt((tmp_path / "out").read_bytes()).disk == golden.expected("lsmt", "d").read(
        0, golden.row_of("lsmt", "d")["vsize"]
    )


@pytest.mark.parametrize("name", ["a", "b"])
def test_commit_of_a_sealed_layer_is_that_of_its_pair(name: str, tmp_path: Path) -> None:
    data, index = pair(name, tmp_path)
    sealed = tmp_path / "sealed"
    sealed.write_bytes(golden.data_of(f"lsmt/{name}.sealed"))
    first = succeed("layer", "commit", data, index, "-o", tmp_path / "out", "-m", "tag")
    assert succeed("layer", "commit", sealed, "-o", tmp_path / "out", "-m", "tag") == first


@pytest.mark.parametrize("compress", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("tar", [True, False])
def test_commit_options(compress: str, tar: bool, tmp_path: Path) -> None:
    data, index = pair("b", tmp_path)
    options = [
        "--uuid", UUID.lower(), "--parent-uuid", "AAAAAAAA-2222-4333-8444-555555555555",
        "-m", "a tag", "--compress", compress, "--block-size", "16k", "--threads", "2",
        "--tar" if tar else "--no-tar",
    ]  # fmt: skip
    succeed("layer", "commit", data, index, "-o", tmp_path / "out", *options)
    wrapping = Wrapping(compress, 16384, tar)
    parsed = unwrapped((tmp_path / "out").read_bytes(), wrapping)
    assert parsed.disk == parse_lsmt(golden.data_of("lsmt/b.commit")).disk
    assert parsed.header["uuid"] == UUID.encode() + b"\0"
    assert parsed.header["parent_uuid"][:8] == b"AAAAAAAA"
    assert parsed.header["user_tag"].rstrip(b"\0") == b"a tag"
    assert "good" in succeed("layer", "verify", tmp_path / "out")


def test_commit_of_what_is_none(tmp_path: Path) -> None:
    data, index = pair("a", tmp_path)
    out = tmp_path / "out"
    fail(NotFoundError.exit_code, "layer", "commit", tmp_path / "no", index, "-o", out)
    fail(NotFoundError.exit_code, "layer", "commit", data, tmp_path / "no", "-o", out)
    fail(FormatError.exit_code, "layer", "commit", index, data, "-o", out)
    fail(FormatError.exit_code, "layer", "commit", data, "-o", out)
    too_long = "x" * 257
    assert "257 bytes" in fail(2, "layer", "commit", data, index, "-o", out, "-m", too_long)
    assert not out.exists()


def test_large_blocks_are_warned_of(tmp_path: Path) -> None:
    data, index = pair("a", tmp_path)
    done = run("layer", "commit", data, index, "-o", tmp_path / "out", "--block-size", "64k")
    assert done.returncode == 0
    assert "32k is safe" in done.stderr


# --- seal


@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_seal(name: str, tmp_path: Path) -> None:
    data, index = pair(name, tmp_path)
    sparse = name == "d"
    before = data.read_bytes()
    succeed("layer", "seal", data, index)
    index.unlink()
    assert data.read_bytes().startswith(before), "only appended to"
    found = succeed_json("layer", "info", data)
    assert found["layers"][0]["sparse"] == sparse
    assert "good" in succeed("layer", "verify", data)
    succeed("layer", "dump", data, "-o", tmp_path / "raw")
    wanted = golden.expected("lsmt", name)
    assert (tmp_path / "raw").read_bytes() == wanted.read(0, wanted.size)
    if not sparse:
        # The same segments as the reference makes of it.
        text = succeed("layer", "info", data, "--segments").split("mapped bytes:")[1]
        segments = golden.segments_of(golden.tree() / f"lsmt/{name}.sealed.segments.txt").segments
        shown = [tuple(map(int, line.split())) for line in text.splitlines()[1:]]
        assert [line[:2] + line[3:] for line in shown] == [s[:2] + s[3:] for s in segments]
    assert "sealed already" in fail(UsageError.exit_code, "layer", "seal", data, data)


# --- merge


def stack(tmp_path: Path, *layers: bytes) -> list[Path]:
    paths = []
    for number, layer in enumerate(layers):
        paths.append(tmp_path / f"layer{number}")
        paths[-1].write_bytes(layer)
    return paths


def test_merge_of_golden_stacks(tmp_path: Path) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    for source, digest in (
        (["lsmt/e.config.json"], golden.row_of("lsmt", "e.mix")["raw_sha256"]),
        ([f"lsmt/e{n}.commit" for n in range(5)], golden.row_of("lsmt", "e.mix")["raw_sha256"]),
        (["img/img3.config.json"], golden.row_of("img", "img3")["raw_sha256"]),
    ):
        succeed("layer", "merge", *(golden.tree() / name for name in source), "-o", out)
        succeed("layer", "dump", out, "-o", raw)
        assert raw_digest(raw) == digest
        (found,) = succeed_json("layer", "info", out)["layers"]
        assert found["virtual_size"] == raw.stat().st_size


def test_merge_of_255_layers(tmp_path: Path) -> None:
    paths = stack(tmp_path, *golden.layers_of_s255())
    succeed("layer", "merge", *paths, "-o", tmp_path / "out", *PLAIN)
    parsed = parse_lsmt((tmp_path / "out").read_bytes())
    assert hashlib.sha256(parsed.disk).hexdigest() == golden.row_of("lsmt", "s255")["raw_sha256"]
    assert not any(entry.zeroed for entry in parsed.entries)
    more = [*paths, paths[-1]]
    fail(UnsupportedError.exit_code, "layer", "merge", *more, "-o", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_zeros_at_the_bottom_are_dropped(tmp_path: Path) -> None:
    bottom = build_lsmt([Write(0, 100), Write(50, b"a" * 4096)], 1 << 20)
    top = build_lsmt([Write(56, 200), Write(1000, b"b" * 512)], 2 << 20)
    out = tmp_path / "out"
    paths = stack(tmp_path, bottom, top)

    def zeroed(*options: object) -> int:
        succeed("layer", "merge", *paths, "-o", out, *PLAIN, *options)
        parsed = parse_lsmt(out.read_bytes())
        assert parsed.header["virtual_size"] == 2 << 20, "that of the whole stack"
        return sum(entry.length for entry in parsed.entries if entry.zeroed)

    assert zeroed() == 0
    assert zeroed("--over") == 48 + 200, "whole blocks"
    paths[0].write_bytes(build_lsmt([Write(0, 100)], 1 << 20, parent_uuid=UUID))
    assert zeroed() > 0, "a parent is below"
    (found,) = succeed_json("layer", "info", out)["layers"]
    assert found["parent_uuid"] == UUID


# --- dump


def test_dump_as_qcow2(tmp_path: Path) -> None:
    config = golden.tree() / "img/img3.config.json"
    succeed("layer", "dump", config, "-o", tmp_path / "raw")
    succeed("layer", "dump", config, "-o", tmp_path / "qcow2", "--format", "qcow2")
    compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw"]
    subprocess.run([*compare, tmp_path / "qcow2", tmp_path / "raw"], check=True)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", tmp_path / "qcow2"], check=True, capture_output=True
    )
    assert json.loads(info.stdout)["format"] == "qcow2"
    assert sorted(os.listdir(tmp_path)) == ["home", "qcow2", "raw"]


def test_qcow2_without_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = fail(
        SystemSupportError.exit_code, "layer", "dump", golden.tree() / "lsmt/a.commit",
        "-o", tmp_path / "out", "--format", "qcow2",
    )  # fmt: skip
    assert "install qemu-utils" in line
    assert os.listdir(tmp_path) == ["home"]


# --- import


def test_import_of_a_sparse_file(tmp_path: Path) -> None:
    raw, out, again = tmp_path / "raw", tmp_path / "out", tmp_path / "again"
    numbers = random.Random(1)
    size = 1 << 40  # nobody could read all of it in the time of a test
    with raw.open("wb") as file:
        file.truncate(size)
        for place in (0, 12288, 700 << 30, size - 5000):
            file.seek(place)
            file.write(bytes(4096) + numbers.randbytes(904))
    told = succeed_json("layer", "import", raw, "-o", out)
    assert told["virtual_size"] == size
    assert told["data_bytes"] <= 5 * 4096
    assert told["zero_bytes"] == 0
    (found,) = succeed_json("layer", "info", out)["layers"]
    assert (found["wrapper"], found["compression"], found["uuid"]) == ("tar", "lz4", told["uuid"])
    succeed("layer", "dump", out, "-o", again)
    assert again.stat().st_size == size
    assert again.stat().st_blocks * 512 < 1 << 20
    with raw.open("rb") as one, again.open("rb") as other:
        for place in (0, 12288, 700 << 30, size - 8192):
            one.seek(place)
            other.seek(place)
            assert one.read(8192) == other.read(8192)


def test_import_of_an_odd_size(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * 5001)
    told = succeed_json("layer", "import", raw, "-o", tmp_path / "out", *PLAIN)
    assert told["virtual_size"] == 5120
    assert parse_lsmt((tmp_path / "out").read_bytes()).disk == b"x" * 5001 + bytes(119)
    raw.write_bytes(b"")
    assert succeed_json("layer", "import", raw, "-o", tmp_path / "out")["virtual_size"] == 0
    assert "neither" in fail(FormatError.exit_code, "layer", "import", tmp_path, "-o", "x")
    fail(NotFoundError.exit_code, "layer", "import", tmp_path / "no", "-o", tmp_path / "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_import_of_a_block_device(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(2).randbytes(1 << 20) + bytes(1 << 20))
    done = subprocess.run(
        ["losetup", "-f", "--show", "-r", raw], check=True, capture_output=True, text=True
    )
    device = done.stdout.strip()
    try:
        one = succeed("layer", "import", device, "-o", tmp_path / "one")
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert succeed("layer", "import", raw, "-o", tmp_path / "other") == one
    assert succeed_json("layer", "info", tmp_path / "one")["merged"]["mapped_bytes"] == 1 << 20


def test_import_merge_and_commit_agree(tmp_path: Path) -> None:
    """One disk, three ways to a layer of it: one digest."""
    raw = tmp_path / "raw"
    numbers = random.Random(3)
    blocks = [numbers.choice([bytes(4096), numbers.randbytes(4096)]) for _ in range(200)]
    raw.write_bytes(b"".join(blocks))
    imported = succeed("layer", "import", raw, "-o", tmp_path / "one")
    merged = succeed("layer", "merge", tmp_path / "one", "-o", tmp_path / "two")
    assert merged == imported


# --- verify


def test_verify(tmp_path: Path) -> None:
    good = golden.tree() / "img/L1.lz4-4k.tar"
    assert succeed("layer", "verify", good) == f"{good}: good\n"
    config = golden.tree() / "img/img3.config.json"
    assert succeed("layer", "verify", config).count(": good") == 3
    plain = golden.tree() / "lsmt/a.commit"
    assert "no checksums" in succeed("layer", "verify", plain)
    data, index = pair("a", tmp_path)
    assert "no checksums" in succeed("layer", "verify", f"{data}+{index}")


def test_verify_of_damaged_layers(tmp_path: Path) -> None:
    bad, cut = tmp_path / "bad", tmp_path / "cut"
    good = golden.tree() / "img/L1.lz4-4k.tar"
    content = bytearray(good.read_bytes())
    content[100_000] ^= 1
    content[200_000] ^= 1
    bad.write_bytes(content)
    cut.write_bytes(content[:-5000])
    done = run("layer", "verify", "--json", good, bad, cut)
    assert done.returncode == FormatError.exit_code
    assert "2 of 3 layers are damaged" in done.stderr
    first, second, third = json.loads(done.stdout)["layers"]
    assert (first["errors"], first["damaged_blocks"]) == ([], 0)
    assert second["damaged_blocks"] == 2
    assert "checksum mismatch" in second["errors"][0]
    assert third["errors"]
    head = bytearray(good.read_bytes())
    head[1536 + 600] ^= 1  # in the block with the LSMT header
    bad.write_bytes(head)
    assert run("layer", "verify", bad).returncode == FormatError.exit_code


# --- failures leave nothing


def test_a_damaged_source_leaves_no_layer(tmp_path: Path) -> None:
    content = bytearray((golden.tree() / "img/L1.lz4-4k.tar").read_bytes())
    content[100_000] ^= 1
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(content)
    out.write_text("old")
    line = fail(FormatError.exit_code, "layer", "merge", source, "-o", out)
    assert "checksum mismatch" in line
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["home", "out", "source"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    try:
        raw = tmp_path / "raw"
        raw.write_bytes(random.Random(1).randbytes(4 << 20))
        line = fail(13, "layer", "import", raw, "-o", disk / "out")
        assert "No space left" in line
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_every_verb_has_help() -> None:
    text = succeed("layer", "--help")
    for verb in ("info", "verify", "dump", "import", "merge", "commit", "create", "seal"):
        assert f"\n  {verb} " in text
        assert "Usage:" in succeed("layer", verb, "--help")
        assert run("layer", verb, "-v").returncode == UsageError.exit_code
