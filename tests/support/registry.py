"""A real registry for tests and for the demo: Debian's ``docker-registry`` on a loopback port.

    with RealRegistry() as registry:                      # plain HTTP, no login
        digest = registry.push_blob("team/app", b"...")
        registry.push_manifest("team/app", "v1", manifest, MEDIA_TYPE)
        ...                                               # registry.host is 127.0.0.1:PORT
        registry.stop(); registry.start()                 # an outage: same port, same contents

Modes: ``auth="htpasswd"`` (Basic, bcrypt), ``auth="token"`` (Bearer; ``registry.tokens`` signs),
``tls=True`` (``registry.ca_file`` is the CA), ``redirect=True`` (blobs are answered with a 307 to
``registry.storage``, a static server over the registry's own files). Pushing uses http.client, so
that it shares no code with what is tested.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self
from urllib.parse import urlsplit

import bcrypt
import trustme
from support.side_servers import StaticServer, TokenServer

BINARY = "docker-registry"
READY_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.01
START_ATTEMPTS = 5

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

ACCESS_LINE = re.compile(r'^\S+ - \S* ?\S* ?\[[^]]*\] "(\S+) (\S+) \S+" (\d+) (\d+)', re.MULTILINE)


@dataclass(frozen=True)
class LoggedRequest:
    """One line of the registry's access log; ``size`` is bytes of the body sent."""

    method: str
    path: str
    status: int
    size: int


def sha256(data: bytes) -> str:
    """The digest of ``data`` in the registry's form."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """Poll a real condition, at most ``seconds`` long; AssertionError names it when it fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RealRegistry:
    """One docker-registry process with a directory of its own. Start it in the main thread.

    ``users`` (name -> password) matter in the auth modes; the first of them is the one who pushes.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        auth: Literal["", "htpasswd", "token"] = "",
        tls: bool = False,
        redirect: bool = False,
        users: dict[str, str] | None = None,
        anonymous_pull: bool = False,
        port: int = 0,
    ) -> None:
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="hybrid-registry-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "registry.log"
        self.storage_directory = self.directory / "storage"
        self.storage_directory.mkdir(exist_ok=True)
        self.users = users or {"alice": "wonder:land"}
        self.auth = auth
        self.port = port
        self.ca: trustme.CA | None = trustme.CA() if tls else None
        self.ca_file = self.directory / "ca.pem"
        self.tokens = TokenServer(self.users, anonymous_pull=anonymous_pull)
        self.storage = StaticServer(self.storage_directory)
        self._redirect = redirect
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``; stays the same over stop and start."""
        return f"127.0.0.1:{self.port}"

    @property
    def scheme(self) -> str:
        return "https" if self.ca else "http"

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process (again) and return when it answers."""
        assert self._process is None, "the registry is running"
        fixed_port = self.port != 0
        for _ in range(START_ATTEMPTS):
            self.port = self.port if fixed_port else free_port()
            self._launch()
            # Another process may have taken the port between the probe and the start.
            if self._wait_ready():
                return
            if fixed_port:
                break
        raise AssertionError(f"docker-registry did not start:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """End the process; contents and port are kept. Side servers go on."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None

    def close(self) -> None:
        """Stop everything, and remove the directory if it was made here."""
        self.stop()
        self.tokens.stop()
        self.storage.stop()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            if self.auth == "token":
                self.tokens.start()
            if self._redirect:
                self.storage.start()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- contents --------------------------------------------------------------------------------

    def push_blob(self, repository: str, data: bytes | Path) -> str:
        """Upload bytes or a file; returns its digest."""
        if isinstance(data, Path):
            with data.open("rb") as file:
                digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                return self._upload(repository, file, data.stat().st_size, digest)
        return self._upload(repository, data, len(data), sha256(data))

    def push_manifest(
        self, repository: str, tag: str, data: bytes, media_type: str = MANIFEST_TYPE
    ) -> str:
        """Store a manifest or an index under a tag (or its digest); returns its digest."""
        self.request(
            "PUT",
            f"/v2/{repository}/manifests/{tag}",
            repository,
            data,
            {"Content-Type": media_type},
            expect=(201,),
        )
        return sha256(data)

    def push_image(
        self, repository: str, tag: str, layers: list[bytes], config: bytes = b"{}"
    ) -> tuple[str, list[str]]:
        """A plain OCI image of these layer blobs; returns (manifest digest, layer digests)."""
        digests = [self.push_blob(repository, layer) for layer in layers]
        config_digest = self.push_blob(repository, config)
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": len(config)},
            "layers": [
                {"mediaType": LAYER_TYPE, "digest": digest, "size": len(layer)}
                for digest, layer in zip(digests, layers, strict=True)
            ],
        }
        return self.push_manifest(repository, tag, json.dumps(manifest).encode()), digests

    def blob_path(self, digest: str) -> Path:
        """The file that holds a blob, to damage or remove it."""
        algorithm, _, value = digest.partition(":")
        blobs = self.storage_directory / "docker/registry/v2/blobs"
        return blobs / algorithm / value[:2] / value / "data"

    # -- what was asked of it --------------------------------------------------------------------

    def requests(self, method: str = "", path_part: str = "") -> list[LoggedRequest]:
        """The requests since ``forget_requests``, in the order they were finished.

        The log line of a request is written after its answer was sent: poll if the last one counts.
        """
        with self.log.open() as log:
            log.seek(self._log_offset)
            found = ACCESS_LINE.findall(log.read())
        every = [LoggedRequest(m, path, int(code), int(size)) for m, path, code, size in found]
        return [r for r in every if method in ("", r.method) and path_part in r.path]

    def forget_requests(self) -> None:
        """Start counting anew. A marker request makes sure that earlier log lines are written."""
        marker = f"/v2/marker/tags/list?n={time.monotonic_ns()}"
        self.request("GET", marker, "marker", expect=())
        wait_until(lambda: bool(self.requests("GET", marker)), "log line of the marker request")
        self._log_offset = self.log.stat().st_size

    def request(
        self,
        method: str,
        path: str,
        repository: str,
        body: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        expect: tuple[int, ...] = (200,),
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request with the pusher's credentials; the status must be in ``expect`` if given."""
        connection = self._connect()
        try:
            all_headers = {**self._authorization(repository), **(headers or {})}
            connection.request(method, path, body, all_headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if expect and response.status not in expect:
            raise AssertionError(f"{method} {path}: {response.status} {content[:500]!r}")
        return response, content

    # -- inner -----------------------------------------------------------------------------------

    def _upload(self, repository: str, body: bytes | IO[bytes], size: int, digest: str) -> str:
        path = f"/v2/{repository}/blobs/uploads/"
        response, _ = self.request("POST", path, repository, b"", expect=(202,))
        location = urlsplit(response.headers["Location"])
        path = f"{location.path}?{location.query}&digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self.request("PUT", path, repository, body, headers, expect=(201,))
        return digest

    def _connect(self) -> http.client.HTTPConnection:
        if self.ca is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_SECONDS)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=READY_SECONDS, context=context
        )

    def _authorization(self, repository: str) -> dict[str, str]:
        user, password = next(iter(self.users.items()))
        if self.auth == "htpasswd":
            login = base64.b64encode(f"{user}:{password}".encode()).decode()
            return {"Authorization": f"Basic {login}"}
        if self.auth == "token":
            scope = f"repository:{repository}:pull,push,delete"
            token = self.tokens.mint(user, [scope], {"pull", "push", "delete"})
            return {"Authorization": f"Bearer {token}"}
        return {}

    def _launch(self) -> None:
        config = self.directory / "config.yml"
        # JSON is YAML: no need for a YAML writer.
        config.write_text(json.dumps(self._configuration(), indent=1))
        command = [BINARY, "serve", str(config)]
        if threading.current_thread() is threading.main_thread():
            # Dies with the test run, even if that is killed. (From another thread it would die
            # with that thread.)
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.request("GET", "/v2/", "ready", expect=())
            except OSError:
                time.sleep(POLL_SECONDS)
            else:
                if self._process.poll() is None:
                    return True
        self.stop()
        return False

    def _configuration(self) -> dict[str, Any]:
        http_part: dict[str, Any] = {"addr": self.host, "secret": "only-for-tests"}
        if self.ca is not None:
            http_part["tls"] = self._tls_files()
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage_directory)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http_part,
        }
        if self._redirect:
            options = {"baseurl": f"http://{self.storage.host}/"}
            config["middleware"] = {"storage": [{"name": "redirect", "options": options}]}
        if self.auth:
            config["auth"] = {self.auth: self._auth_options()}
        return config

    def _auth_options(self) -> dict[str, Any]:
        if self.auth == "htpasswd":
            path = self.directory / "htpasswd"
            lines = [
                f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
                for user, password in self.users.items()
            ]
            path.write_text("".join(lines))
            return {"realm": "tests", "path": str(path)}
        bundle = self.directory / "tokens.pem"
        bundle.write_bytes(self.tokens.certificate_pem())
        return {
            "realm": f"http://{self.tokens.host}/token",
            "service": self.tokens.service,
            "issuer": self.tokens.issuer,
            "rootcertbundle": str(bundle),
        }

    def _tls_files(self) -> dict[str, str]:
        assert self.ca is not None
        certificate, key = self.directory / "tls.pem", self.directory / "tls.key"
        if not certificate.exists():
            self.ca.cert_pem.write_to_path(str(self.ca_file))
            issued = self.ca.issue_cert("127.0.0.1", "localhost")
            issued.private_key_pem.write_to_path(str(key))
            for number, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(str(certificate), append=number > 0)
        return {"certificate": str(certificate), "key": str(key)}
