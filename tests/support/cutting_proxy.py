"""A TCP proxy on loopback that cuts connections at a chosen byte: real registries, broken lines.

async with cutting_proxy(registry.host) as proxy:
    proxy.cut("up", 100_000)       # the connection that carries this byte upwards breaks there
    ... proxy.host ... proxy.cuts_left
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import trio

Direction = Literal["up", "down"]
PIECE_BYTES = 1 << 16


@dataclass
class Cut:
    """Passes ``left`` more bytes in its direction, over all connections, then breaks one."""

    direction: Direction
    left: int


class CuttingProxy:
    """``host`` is where it listens. Cuts are carried out one after another."""

    def __init__(self, upstream_host: str) -> None:
        self.host = ""
        self.passed = {"up": 0, "down": 0}
        self._upstream, _, self._port = upstream_host.rpartition(":")
        self._cuts: list[Cut] = []

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def cut(self, direction: Direction, after_bytes: int, times: int = 1) -> None:
        self._cuts += [Cut(direction, after_bytes) for _ in range(times)]

    async def serve(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self._upstream, int(self._port))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, client, server, "up", nursery)
                nursery.start_soon(self._pass, server, client, "down", nursery)
        finally:
            client.socket.close()
            server.socket.close()

    async def _pass(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        direction: Direction,
        nursery: trio.Nursery,
    ) -> None:
        try:
            while data := await source.receive_some(PIECE_BYTES):
                allowed = self._allowed(direction, len(data))
                self.passed[direction] += allowed
                await target.send_all(data[:allowed])
                if allowed < len(data):
                    break
            else:
                await target.send_eof()
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    def _allowed(self, direction: Direction, length: int) -> int:
        if not self._cuts or self._cuts[0].direction != direction:
            return length
        cut = self._cuts[0]
        if length <= cut.left:
            cut.left -= length
            return length
        self._cuts.pop(0)
        return cut.left


@asynccontextmanager
async def cutting_proxy(upstream_host: str) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(upstream_host)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy.host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
