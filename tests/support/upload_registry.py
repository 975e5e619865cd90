"""The uploading half of a registry in memory, as a handler for faulty_registry: it can misbehave.

    memory = UploadRegistry()
    memory.breaks["PATCH"] = [half_then(503)]          # the first PATCH; later ones are served
    async with faulty_registry(memory) as server: ...
    memory.blobs[digest], memory.manifests[reference]

It checks what a registry checks: offsets of chunks, and digests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from support.faulty_registry import Reply, Request
from support.registry import sha256

Break = Callable[["UploadRegistry", Request], Reply | None]
"""Answers instead of the registry; None: it answers itself after all."""


class UploadRegistry:
    """``location`` makes the Location of an upload from its path and number."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[int, bytearray] = {}
        self.breaks: dict[str, list[Break]] = {}
        self.location: Callable[[str], str] = lambda path: path
        self.cancelled = 0
        self.extra_headers: dict[str, str] = {}
        self._begun = 0

    def __call__(self, request: Request) -> Reply:
        waiting = self.breaks.get(request.method, [])
        if waiting:
            reply = waiting.pop(0)(self, request)
            if reply is not None:
                return reply
        return self.serve(request)

    def serve(self, request: Request) -> Reply:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if "/manifests/" in parts.path:
            self.manifests[parts.path.rpartition("/")[2]] = request.body
            return Reply(201)
        if "/blobs/sha256:" in parts.path:
            data = self.blobs.get(parts.path.rpartition("/")[2])
            headers = {"X-Size": str(len(data))} if data is not None else {}
            return Reply(404 if data is None else 200, headers=headers)
        if request.method == "POST":
            self._begun += 1
            self.uploads[self._begun] = bytearray()
            return Reply(202, headers=self._headers(self._begun) | self.extra_headers)
        return self._in_upload(request, int(parts.path.rpartition("/")[2]), query)

    def _in_upload(self, request: Request, number: int, query: dict[str, str]) -> Reply:
        upload = self.uploads.get(number)
        if upload is None:
            return Reply(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        if request.method == "DELETE":
            del self.uploads[number]
            self.cancelled += 1
            return Reply(204)
        if request.method == "GET":
            return Reply(204, headers=self._headers(number))
        if request.method == "PATCH":
            return self.patch(request, number)
        data = bytes(upload) + request.body
        if sha256(data) != query.get("digest"):
            return Reply(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        del self.uploads[number]
        self.blobs[query["digest"]] = data
        return Reply(201, headers={"Docker-Content-Digest": query["digest"]})

    def patch(self, request: Request, number: int) -> Reply:
        upload = self.uploads[number]
        match = re.fullmatch(r"(\d+)-(\d+)", request.headers.get("content-range", ""))
        assert match is not None, request.headers
        if int(match[1]) != len(upload):
            return Reply(416, b'{"errors":[{"code":"RANGE_INVALID"}]}')
        upload += request.body
        return Reply(202, headers=self._headers(number))

    def _headers(self, number: int) -> dict[str, str]:
        end = max(0, len(self.uploads[number]) - 1)
        return {"Location": self.location(f"/upload/here/{number}?x=1"), "Range": f"0-{end}"}


def answer(*statuses: int, body: bytes = b"", **headers: str) -> list[Break]:
    """Breaks that answer with these statuses, one after another."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply_with(status: int) -> Break:
        return lambda registry, request: Reply(status, body, named)

    return [reply_with(status) for status in statuses]


def half_then(reply: Reply) -> Break:
    """Take half of a chunk, then answer so."""

    def take_half(registry: UploadRegistry, request: Request) -> Reply:
        number = int(urlsplit(request.path).path.rpartition("/")[2])
        registry.uploads[number] += request.body[: len(request.body) // 2]
        return reply

    return take_half


def serve_then(reply: Reply) -> Break:
    """Do what was asked, but answer so: as if the true answer was lost."""

    def do_it(registry: UploadRegistry, request: Request) -> Reply:
        registry.serve(request)
        return reply

    return do_it


def pass_by(registry: UploadRegistry, request: Request) -> Reply | None:
    """No break: this request is served."""
    return None
