"""Small threaded HTTP servers that stand beside a real registry: tokens, and object storage.

Both are real HTTP/1.1 servers on a loopback port, with counters that a test can look at.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import threading
import time
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KEEP_ALIVE_SECONDS = 30


class SideServer:
    """A ThreadingHTTPServer in a thread, from ``start`` (or ``with``) to ``stop``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        assert self._server is not None, "the server is not running"
        return f"127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = KEEP_ALIVE_SECONDS

            def do_GET(self) -> None:
                owner.answer(self, b"")

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                owner.answer(self, self.rfile.read(length))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        raise NotImplementedError

    def __enter__(self) -> SideServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def reply(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> None:
    """Send one complete answer."""
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


class TokenServer(SideServer):
    """The token end point of a registry in token mode: signs JWTs with a key of its own.

    ``users`` maps names to passwords; the identity token of a user is ``identity_token(name)``.
    Without credentials only ``pull`` is granted, and only with ``anonymous_pull``.
    """

    issuer = "hybrid-tests"
    service = "hybrid-registry"

    def __init__(self, users: dict[str, str], *, anonymous_pull: bool = False) -> None:
        super().__init__()
        self.users = users
        self.anonymous_pull = anonymous_pull
        self.expires_in_seconds = 300
        self.requests: list[dict[str, str]] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._self_signed()

    def identity_token(self, user: str) -> str:
        return f"identity-of-{user}"

    def certificate_pem(self) -> bytes:
        """The ``rootcertbundle`` for the registry."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def mint(self, user: str, scopes: list[str], actions: set[str]) -> str:
        """A signed token for those of ``scopes`` (``repository:NAME:ACTIONS``) that are allowed."""
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, wanted = scope.split(":", 2)
            granted = sorted(set(wanted.split(",")) & actions)
            access.append({"type": kind, "name": name, "actions": granted})
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "iat": now,
            "nbf": now - 10,
            "exp": now + self.expires_in_seconds,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"x5c": [base64.b64encode(der).decode()]}
        return jwt.encode(claims, self._key, algorithm="ES256", headers=header)

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        query = body.decode() if request.command == "POST" else urlsplit(request.path).query
        fields = {name: " ".join(values) for name, values in parse_qs(query).items()}
        fields["method"] = request.command
        with self.lock:
            self.requests.append(fields)
        user = self._user_of(request, fields)
        if user is None or fields.get("service") != self.service:
            details = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "bad login"}]})
            reply(request, HTTPStatus.UNAUTHORIZED, details.encode())
            return
        actions = {"pull", "push", "delete"} if user else ({"pull"} & self._anonymous())
        scopes = fields["scope"].split(" ") if "scope" in fields else []
        token = self.mint(user, scopes, actions)
        name = "access_token" if request.command == "POST" else "token"
        answer = {name: token, "expires_in": self.expires_in_seconds}
        reply(request, HTTPStatus.OK, json.dumps(answer).encode())

    def _anonymous(self) -> set[str]:
        return {"pull"} if self.anonymous_pull else set()

    def _user_of(self, request: BaseHTTPRequestHandler, fields: dict[str, str]) -> str | None:
        """The user's name, "" for nobody, None for wrong credentials."""
        if request.command == "POST":
            for user in self.users:
                if fields.get("refresh_token") == self.identity_token(user):
                    return user
            return None
        header = request.headers.get("Authorization", "")
        if not header:
            return ""
        try:
            login = base64.b64decode(header.removeprefix("Basic ")).decode()
        except ValueError:
            return None
        name, _, password = login.partition(":")
        return name if self.users.get(name) == password else None

    def _self_signed(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hybrid test tokens")])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


class StaticServer(SideServer):
    """Object storage: serves the files below ``root``, with ranges, to anyone who asks.

    ``refuse_status`` (when not 0) answers every request with that status instead.
    ``requests`` holds (path, Range header, whether an Authorization header came along).
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.refuse_status = 0
        self.requests: list[tuple[str, str, bool]] = []

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path = unquote(urlsplit(request.path).path)
        wanted = request.headers.get("Range", "")
        with self.lock:
            self.requests.append((path, wanted, "Authorization" in request.headers))
            refused = self.refuse_status
        target = (self.root / path.lstrip("/")).resolve()
        if refused:
            reply(request, refused)
        elif not target.is_relative_to(self.root.resolve()) or not target.is_file():
            reply(request, HTTPStatus.NOT_FOUND)
        else:
            self._send_file(request, target, wanted)

    def _send_file(self, request: BaseHTTPRequestHandler, target: Path, wanted: str) -> None:
        size = target.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match is None:
            reply(request, HTTPStatus.OK, target.read_bytes())
            return
        first, last = int(match[1]), min(int(match[2]), size - 1)
        if first > last:
            unsatisfied = {"Content-Range": f"bytes */{size}"}
            reply(request, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=unsatisfied)
            return
        with target.open("rb") as file:
            file.seek(first)
            part = file.read(last + 1 - first)
        headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
        reply(request, HTTPStatus.PARTIAL_CONTENT, part, headers)
