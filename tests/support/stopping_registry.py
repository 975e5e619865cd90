"""A registry from which a plain image is converted half-way."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler
from random import Random

from support import oci
from support.archives import archive, member
from support.plain_images import PlainImage, rich_layers
from support.side_servers import SideServer, reply

BIG = archive(member(b"big", Random(3).randbytes(20_000_000)))


class StoppingRegistry(SideServer):
    """Serves a plain image; the first answer with its top layer stops in the middle."""

    def __init__(self) -> None:
        super().__init__()
        image = PlainImage([rich_layers()[0], BIG])
        self.manifest = image.manifest()
        self.big = image.blobs()[1]
        self.blobs = {oci.digest_of(x): x for x in (image.config_data(), *image.blobs())}
        self.half_sent = threading.Event()
        self.end = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if "/manifests/" in request.path:
            reply(request, 200, self.manifest, {"Content-Type": oci.OCI_MANIFEST})
            return
        data = self.blobs[request.path.rpartition("/")[2]]
        if data != self.big or self.half_sent.is_set():
            reply(request, 200, data)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        self.half_sent.set()
        self.end.wait(60)
        request.close_connection = True
