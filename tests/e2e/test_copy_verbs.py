"""``hybrid copy``, ``push`` and ``pull`` as a user runs them; skopeo and umoci are the judges."""

import base64
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from random import Random

import pytest
from support import golden_image, oci
from support.registry import RealRegistry, wait_until
from support.side_servers import SideServer, reply

from hybrid.errors import (
    EXIT_INTERRUPTED,
    AuthError,
    FormatError,
    NetworkError,
    NotFoundError,
    StorageFullError,
    UsageError,
)

BIG = Random(3).randbytes(20_000_000)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"cacheType": "file", "cacheDir": str(tmp_path / "cache"), "cacheSizeGB": 1}
    config = tmp_path / "overlaybd.json"
    config.write_text(json.dumps({"cacheConfig": cache}))
    monkeypatch.setenv("HYBRID_CONFIG", str(config))


@pytest.fixture(scope="module")
def server() -> Iterator[RealRegistry]:
    with RealRegistry() as registry:
        yield registry


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hybrid", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def succeed(*arguments: object) -> str:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fail(code: int, *arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def tool(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


def digest_of(name: str) -> str:
    """As skopeo sees it."""
    return tool("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", name).strip()


def test_a_golden_image_goes_round(server: RealRegistry, tmp_path: Path) -> None:
    source = golden_image.layout(tmp_path / "source")
    digest = digest_of(source)
    name = f"{server.host}/e2e/golden"
    assert succeed("push", source, f"{name}:v1") == f"{name}:v1@{digest}\n"
    assert digest_of(f"docker://{name}:v1") == digest
    described = json.loads(succeed("inspect", "--json", f"{name}:v1"))
    assert described["digest"] == digest
    assert [layer["compression"] for layer in described["layers"]] == ["lz4"] * 3
    assert succeed("copy", f"{name}:v1", f"{name}/copy:v2") == f"{name}/copy:v2@{digest}\n"
    target = f"oci:{tmp_path}/target:v3"
    assert succeed("pull", f"{name}/copy:v2", target) == f"{target}@{digest}\n"
    assert digest_of(target) == digest
    # What hybrid has written, others can use; what others write, hybrid can.
    tool("skopeo", "copy", "-q", "--preserve-digests", target, f"oci:{tmp_path}/theirs:v4")
    tool(
        "skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false",
        target, f"docker://{name}:theirs",
    )  # fmt: skip
    assert succeed("copy", f"oci:{tmp_path}/theirs:v4", f"{name}:v5").strip().endswith(digest)
    assert json.loads(succeed("inspect", "--json", f"oci:{tmp_path}/target:v3"))["digest"] == digest


def umoci_image(directory: Path, tag: str, architecture: str) -> None:
    """A plain image of one layer, made by umoci."""
    layout = directory / "umoci"
    if not layout.exists():
        tool("umoci", "init", "--layout", layout)
    image = f"{layout}:{tag}"
    tool("umoci", "new", "--image", image)
    root = directory / f"root-{tag}"
    root.mkdir()
    (root / "hello").write_text(f"hello from {architecture}\n")
    tool("umoci", "insert", "--rootless", "--image", image, root / "hello", "/hello")
    tool("umoci", "config", "--image", image, "--architecture", architecture)


def test_an_image_of_umoci_for_two_platforms(server: RealRegistry, tmp_path: Path) -> None:
    for architecture in ("amd64", "arm64"):
        umoci_image(tmp_path, architecture, architecture)
    name = f"{server.host}/e2e/umoci"
    entries = []
    for architecture in ("amd64", "arm64"):
        printed = succeed("push", f"oci:{tmp_path}/umoci:{architecture}", f"{name}:{architecture}")
        digest = printed.strip().partition("@")[2]
        data = (tmp_path / "umoci/blobs/sha256" / digest[7:]).read_bytes()
        platform = {"os": "linux", "architecture": architecture}
        entries.append(oci.descriptor(data, oci.OCI_MANIFEST, platform=platform))
    index = oci.to_json({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    digest = server.push_manifest("e2e/umoci", "multi", index, oci.OCI_INDEX)

    both = f"oci:{tmp_path}/both:v1"
    assert succeed("pull", "--platform", "all", f"{name}:multi", both) == f"{both}@{digest}\n"
    for entry in entries:
        architecture = entry["platform"]["architecture"]
        theirs = tool("skopeo", "inspect", "--override-arch", architecture, both)
        assert json.loads(theirs)["Architecture"] == architecture
        one = f"oci:{tmp_path}/one:{architecture}"
        printed = succeed("pull", "--platform", f"linux/{architecture}", f"{name}:multi", one)
        assert printed == f"{one}@{entry['digest']}\n"
        tool("umoci", "unpack", "--rootless", "--image", one[4:], tmp_path / f"out-{architecture}")
        hello = (tmp_path / f"out-{architecture}/rootfs/hello").read_text()
        assert hello == f"hello from {architecture}\n"
    result = json.loads(
        succeed(
            "copy", "--json", "--platform", "linux/amd64", "--platform", "linux/arm64",
            f"{name}:multi", f"{name}/other:multi",
        )
    )  # fmt: skip
    assert result["manifests"] == 3
    assert result["blobs"]["written"]["count"] == 0
    assert result["blobs"]["mounted"]["count"] == 4
    tool(
        "skopeo", "copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false",
        f"docker://{name}/other:multi", f"oci:{tmp_path}/theirs:v1",
    )  # fmt: skip


def test_an_archive_of_skopeo(server: RealRegistry, tmp_path: Path) -> None:
    umoci_image(tmp_path, "app", "amd64")
    archive = tmp_path / "app.tar"
    tool("skopeo", "copy", "-q", f"oci:{tmp_path}/umoci:app", f"docker-archive:{archive}:app:v1")
    name = f"{server.host}/e2e/archive:v1"
    printed = succeed("push", f"docker-archive:{archive}:app:v1", name)
    assert printed == succeed("push", f"docker-archive:{archive}", name)
    assert digest_of(f"docker://{name}") == printed.strip().partition("@")[2]
    tool("skopeo", "copy", "-q", "--src-tls-verify=false", "--preserve-digests",
         f"docker://{name}", f"oci:{tmp_path}/back:v1")  # fmt: skip
    tool("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/back:v1", tmp_path / "out")
    assert (tmp_path / "out/rootfs/hello").read_text() == "hello from amd64\n"


def test_usage(server: RealRegistry, tmp_path: Path) -> None:
    code = UsageError.exit_code
    layout, name = golden_image.layout(tmp_path / "source"), f"{server.host}/e2e/usage"
    assert "SRC must be an image on disk" in fail(code, "push", name, f"{name}:v1")
    assert "DST must be an image in a registry" in fail(code, "push", layout, f"oci:{tmp_path}/x")
    assert "SRC must be an image in a registry" in fail(code, "pull", layout, f"oci:{tmp_path}/x")
    assert "DST must be an image on disk" in fail(code, "pull", name, name)
    assert "no platform" in fail(code, "copy", "--platform", "amd64", layout, name)
    assert "not empty, and no OCI layout" in fail(code, "copy", layout, f"oci:{tmp_path}:v1")
    assert "can only be read" in fail(code, "copy", layout, f"docker-archive:{tmp_path}/x.tar")
    assert run("copy", "--jobs", "99", layout, name).returncode == code
    missing = fail(NotFoundError.exit_code, "pull", f"{name}:none", f"oci:{tmp_path}/none")
    assert "404" in missing
    assert not (tmp_path / "none").exists()
    fail(NotFoundError.exit_code, "push", f"oci:{tmp_path}/nothing", name)


def test_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = golden_image.layout(tmp_path / "source")
    with RealRegistry(auth="htpasswd", tls=True) as private:
        name = f"{private.host}/e2e/private:v1"
        assert "not trusted" in fail(NetworkError.exit_code, "push", layout, name)
        words = fail(AuthError.exit_code, "push", "--insecure", layout, name)
        assert "no permission to push to" in words
        docker = tmp_path / "docker"
        docker.mkdir()
        auth = base64.b64encode(b"alice:wonder:land").decode()
        (docker / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": auth}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(docker))
        succeed("push", "--dst-insecure", layout, name)
        fail(NetworkError.exit_code, "pull", "--dst-insecure", name, f"oci:{tmp_path}/target")
        succeed("pull", "--src-insecure", name, f"oci:{tmp_path}/target")


def test_a_damaged_layer(server: RealRegistry, tmp_path: Path) -> None:
    builder = oci.LayoutBuilder(tmp_path / "source")
    builder.add_image([b"a layer", b"another"], "v1")
    builder.path(oci.digest_of(b"another")).write_bytes(b"anotheR")
    name = f"{server.host}/e2e/damaged:v1"
    assert "digest" in fail(FormatError.exit_code, "push", f"oci:{tmp_path}/source:v1", name)
    fail(NotFoundError.exit_code, "pull", name, f"oci:{tmp_path}/target")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(server: RealRegistry, tmp_path: Path) -> None:
    name = f"{server.host}/e2e/big:v1"
    builder = oci.LayoutBuilder(tmp_path / "source")
    builder.add_image([b"small", BIG], "v1")
    succeed("push", f"oci:{tmp_path}/source:v1", name)
    disk = tmp_path / "disk"
    disk.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk)
    try:
        words = fail(StorageFullError.exit_code, "pull", name, f"oci:{disk}/target:v1")
        assert "No space left" in words
        assert not list(disk.iterdir())
    finally:
        tool("umount", disk)


class StoppingRegistry(SideServer):
    """Serves one image; the first answer with its big layer stops in the middle until the end."""

    def __init__(self) -> None:
        super().__init__()
        config = oci.image_config([b"small", BIG])
        self.manifest = oci.manifest_of(
            [oci.descriptor(x, oci.OCI_LAYER) for x in (b"small", BIG)], config
        )
        self.blobs = {oci.digest_of(data): data for data in (config, b"small", BIG)}
        self.half_sent = threading.Event()
        self.end = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if "/manifests/" in request.path:
            reply(request, 200, self.manifest, {"Content-Type": oci.OCI_MANIFEST})
            return
        data = self.blobs[request.path.rpartition("/")[2]]
        if data is not BIG or self.half_sent.is_set():
            reply(request, 200, data)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        self.half_sent.set()
        self.end.wait(60)
        request.close_connection = True


def test_interrupted_and_continued(tmp_path: Path) -> None:
    """Ctrl-C while a layer is under way: one line, its exit code, no tag; then it goes on."""
    target = tmp_path / "target"
    with StoppingRegistry() as registry:
        assert isinstance(registry, StoppingRegistry)
        arguments = ["pull", "--json", f"{registry.host}/app:v1", f"oci:{target}:v1"]
        command = [sys.executable, "-m", "hybrid", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert registry.half_sent.wait(30)
            small = target / "blobs" / "sha256" / oci.digest_of(b"small")[7:]
            wait_until(small.exists, "the small layer")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            registry.end.set()
            process.kill()
            process.wait()
        # The empty line is click's, behind the terminal's ^C.
        assert (process.returncode, errors.lstrip()) == (EXIT_INTERRUPTED, "hybrid: interrupted\n")
        assert not (target / "index.json").exists()
        assert oci.digest_of(BIG)[7:] not in [path.name for path in small.parent.iterdir()]
        assert not list(target.rglob("*.part"))
        result = json.loads(succeed(*arguments))
    assert result["blobs"]["present"]["count"] >= 1
    assert result["blobs"]["written"]["count"] <= 2
    assert digest_of(f"oci:{target}:v1") == result["digest"] == oci.digest_of(registry.manifest)


def test_progress_on_a_terminal_only(server: RealRegistry, tmp_path: Path) -> None:
    source = golden_image.layout(tmp_path / "source")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "hybrid", "copy", source, f"oci:{tmp_path}/target:v1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    shown = bytearray()
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:
        pass  # the terminal's other side was closed
    finally:
        os.close(master)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.startswith(f"oci:{tmp_path}/target:v1@sha256:")
    assert "4 blobs copied" in shown.decode()
