"""Whole images from a real registry, mounted as users do; and what can go wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import golden, golden_image, oci
from support.image_bench import ImageBench
from support.mounting import poll_until
from support.registry import RealRegistry
from support.tree import read_manifest, read_tree

from hybrid.errors import (
    AuthError,
    CertificateError,
    ConfigError,
    FormatError,
    NetworkError,
    NotFoundError,
    UnsupportedError,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ImageBench]:
    made = ImageBench(tmp_path)
    yield made
    try:
        made.assert_clean()
    finally:
        made.tear_down()


@pytest.fixture(scope="module")
def registry() -> Iterator[RealRegistry]:
    with RealRegistry() as running:
        yield running


def test_golden_tree_from_a_registry(bench: ImageBench, registry: RealRegistry) -> None:
    image = golden_image.push(registry)
    assert bench.succeed("mount", image, bench.mountpoint) == f"{bench.mountpoint}\n"
    assert read_tree(bench.mountpoint) == read_manifest(golden.tree() / "img/img3.manifest.jsonl")
    (mounted,) = bench.list()
    assert mounted["state"] == "ready"
    assert mounted["mode"] == "fuse"
    stats = mounted["stats"]
    assert 0 < stats["bytes_fetched"] < stats["bytes_total"]
    assert stats["bytes_total"] == sum(map(len, golden_image.layers()))
    bench.succeed("umount", bench.mountpoint)
    bench.assert_clean()


def test_listing_the_root_fetches_little(bench: ImageBench, registry: RealRegistry) -> None:
    bench.succeed("mount", golden_image.push(registry), bench.mountpoint)
    assert "usr" in os.listdir(bench.mountpoint)
    (mounted,) = bench.list()
    assert mounted["stats"]["bytes_fetched"] < mounted["stats"]["bytes_total"] // 2
    bench.succeed("umount", mounted["id"])


def test_the_same_image_twice(bench: ImageBench, registry: RealRegistry) -> None:
    image = golden_image.push(registry)
    other = bench.directory / "other"
    other.mkdir()
    for mountpoint in (bench.mountpoint, other):
        bench.succeed("mount", image, mountpoint)
    assert read_tree(other) == read_tree(bench.mountpoint)
    for mountpoint in (bench.mountpoint, other):
        bench.succeed("umount", mountpoint)


@pytest.mark.parametrize("name", ["L0", "L1", "img3merged"])
def test_other_golden_images(bench: ImageBench, name: str) -> None:
    folder = golden.tree() / "img"
    bench.succeed("mount", folder / f"{name}.config.json", bench.mountpoint)
    assert read_tree(bench.mountpoint) == read_manifest(folder / f"{name}.manifest.jsonl")
    bench.succeed("umount", bench.mountpoint)


def test_no_mount_prints_the_file(bench: ImageBench, registry: RealRegistry) -> None:
    image = golden_image.push(registry)
    file = bench.succeed("mount", "--mode", "fuse", "--no-mount", image).strip()
    expected = golden.expected("img", "img3")
    with open(file, "rb") as disk:
        for run in expected.runs:
            disk.seek(run.offset)
            assert disk.read(len(run.data)) == bytes(run.data)
    bench.succeed("umount", bench.list()[0]["id"])


def test_layout_with_skopeo(bench: ImageBench, registry: RealRegistry) -> None:
    """skopeo copies the image from the registry to a layout with its digests; we mount that."""
    source = f"docker://{golden_image.push(registry)}"
    layout = bench.directory / "layout"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
    subprocess.run([*copy, "--preserve-digests", source, f"oci:{layout}:kept"], check=True)
    bench.succeed("mount", f"oci:{layout}:kept", bench.mountpoint)
    assert (bench.mountpoint / "abs/path/file").stat().st_size == 26
    bench.succeed("umount", bench.mountpoint)


def test_reads_fail_and_recover_with_the_registry(bench: ImageBench) -> None:
    with RealRegistry() as registry:
        bench.succeed("mount", golden_image.push(registry), bench.mountpoint)
        registry.stop()
        with pytest.raises(OSError, match="Input/output error"):
            read_tree(bench.mountpoint)
        (mounted,) = bench.list()
        assert registry.host in Path(mounted["log"]).read_text()
        registry.start()
        tree = read_tree(bench.mountpoint)
        assert tree == read_manifest(golden.tree() / "img/img3.manifest.jsonl")
        bench.succeed("umount", bench.mountpoint)


def test_a_killed_server_loses_no_fetched_block(bench: ImageBench, registry: RealRegistry) -> None:
    image = golden_image.push(registry)
    bench.succeed("mount", image, bench.mountpoint)
    read_tree(bench.mountpoint)
    (mounted,) = bench.list()
    os.kill(mounted["pid"], signal.SIGKILL)
    bench.succeed("umount", bench.mountpoint)
    registry.forget_requests()
    bench.succeed("mount", image, bench.mountpoint)
    read_tree(bench.mountpoint)
    assert registry.requests("GET", "/blobs/") == []
    bench.succeed("umount", bench.mountpoint)


def test_the_common_log(bench: ImageBench) -> None:
    log = bench.directory / "all.log"
    bench.configure(logConfig={"logPath": str(log), "logLevel": 0})
    bench.succeed("mount", golden.tree() / "img/L0.config.json", bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    assert "serving " in log.read_text()
    bench.configure(logConfig={"logPath": str(log), "logLevel": 3})
    log.unlink()
    bench.succeed("mount", golden.tree() / "img/L0.config.json", bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    assert log.read_text() == ""


def damage_cache(bench: ImageBench) -> None:
    """Overwrite the middle of every cached blob."""
    blobs = list((bench.directory / "cache").rglob("*.blob"))
    assert len(blobs) == 3
    for blob in blobs:
        with blob.open("r+b") as file:
            file.seek(blob.stat().st_size // 2)
            file.write(os.urandom(3000))


def test_a_damaged_cache_is_fetched_again(bench: ImageBench, registry: RealRegistry) -> None:
    image = golden_image.push(registry)
    bench.succeed("mount", image, bench.mountpoint)
    read_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    damage_cache(bench)
    registry.forget_requests()
    bench.succeed("mount", image, bench.mountpoint)
    tree = read_tree(bench.mountpoint)
    assert tree == read_manifest(golden.tree() / "img/img3.manifest.jsonl")
    assert registry.requests("GET", "/blobs/") != []
    bench.succeed("umount", bench.mountpoint)


def test_a_damaged_blob_is_an_io_error_with_its_name(bench: ImageBench) -> None:
    with RealRegistry() as registry:
        image = golden_image.push(registry)
        blob = registry.blob_path(oci.digest_of(golden_image.layers()[2]))
        data = bytearray(blob.read_bytes())
        data[150_000:350_000] = bytes(200_000)
        blob.write_bytes(data)
        bench.succeed("mount", image, bench.mountpoint)
        with pytest.raises(OSError, match="Input/output error"):
            read_tree(bench.mountpoint)
        (mounted,) = bench.list()
        log = Path(mounted["log"]).read_text()
        assert oci.digest_of(golden_image.layers()[2]) in log
        assert "checksum mismatch" in log
        bench.succeed("umount", bench.mountpoint)


def test_a_full_cache_disk_only_costs_speed(bench: ImageBench, registry: RealRegistry) -> None:
    cache = bench.directory / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(cache)], check=True)
    try:
        bench.succeed("mount", golden_image.push(registry), bench.mountpoint)
        tree = read_tree(bench.mountpoint)
        assert tree == read_manifest(golden.tree() / "img/img3.manifest.jsonl")
        assert "space" in Path(bench.list()[0]["log"]).read_text()
        bench.succeed("umount", bench.mountpoint)
        poll_until(lambda: not bench.list(), "the server's end")
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_unknown_images(bench: ImageBench, registry: RealRegistry) -> None:
    golden_image.push(registry)
    base = f"{registry.host}/{golden_image.REPOSITORY}"
    where = bench.mountpoint
    code = NotFoundError.exit_code
    assert "no-such-tag" in bench.fail("mount", f"{base}:no-such-tag", where, code=code)
    assert "no/such" in bench.fail("mount", f"{registry.host}/no/such:v1", where, code=code)
    digest = f"sha256:{'0' * 64}"
    assert digest in bench.fail("mount", f"{base}@{digest}", where, code=code)


def test_plain_image(bench: ImageBench, registry: RealRegistry) -> None:
    registry.push_image("plain/image", "v1", [golden.data_of("tars/layer1.tar.gz")])
    line = bench.fail(
        "mount", f"{registry.host}/plain/image:v1", bench.mountpoint,
        code=UnsupportedError.exit_code,
    )  # fmt: skip
    assert "plain OCI image" in line
    assert "hybrid convert" in line


def test_truncated_blob(bench: ImageBench) -> None:
    with RealRegistry() as registry:
        image = golden_image.push(registry)
        layer = golden_image.layers()[1]
        registry.blob_path(oci.digest_of(layer)).write_bytes(layer[:-100_000])
        line = bench.fail("mount", image, bench.mountpoint, code=FormatError.exit_code)
        assert oci.digest_of(layer) in line


def test_unreachable_host(bench: ImageBench) -> None:
    line = bench.fail(
        "mount", "127.0.0.1:9/some/image:v1", bench.mountpoint, code=NetworkError.exit_code
    )
    assert "127.0.0.1:9" in line


def test_wrong_and_right_credentials(bench: ImageBench) -> None:
    with RealRegistry(auth="htpasswd") as registry:
        image = golden_image.push(registry)
        bench.fail("mount", image, bench.mountpoint, code=AuthError.exit_code)
        login = bench.directory / "docker"
        login.mkdir()
        bench.environment["DOCKER_CONFIG"] = str(login)
        entry = {"username": "alice", "password": "wrong"}
        config = login / "config.json"
        config.write_text(json.dumps({"auths": {registry.host: entry}}))
        line = bench.fail("mount", image, bench.mountpoint, code=AuthError.exit_code)
        assert "wrong" not in line.replace("are wrong", "")
        entry["password"] = registry.users["alice"]
        config.write_text(json.dumps({"auths": {registry.host: entry}}))
        bench.succeed("mount", image, bench.mountpoint)
        bench.succeed("umount", bench.mountpoint)
        config.write_text("{")
        line = bench.fail("mount", image, bench.mountpoint, code=ConfigError.exit_code)
        assert str(config) in line


def test_untrusted_certificate(bench: ImageBench) -> None:
    with RealRegistry(tls=True) as registry:
        image = golden_image.push(registry)
        line = bench.fail("mount", image, bench.mountpoint, code=CertificateError.exit_code)
        assert "certificate" in line
        for option in ({"caFile": str(registry.ca_file)}, {"insecure": True}):
            bench.configure(registries={registry.host: option})
            bench.succeed("mount", image, bench.mountpoint)
            bench.succeed("umount", bench.mountpoint)
        bench.configure()
        bench.succeed("mount", "--insecure", image, bench.mountpoint)
        bench.succeed("umount", bench.mountpoint)


def test_redirecting_registry(bench: ImageBench) -> None:
    with RealRegistry(redirect=True) as registry:
        bench.succeed("mount", golden_image.push(registry), bench.mountpoint)
        tree = read_tree(bench.mountpoint)
        assert tree == read_manifest(golden.tree() / "img/img3.manifest.jsonl")
        bench.succeed("umount", bench.mountpoint)
