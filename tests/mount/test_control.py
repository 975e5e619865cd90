"""The control socket: one JSON line asked, one answered, and bounded silence."""

import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pytest_trio import trio_fixture
from support.mounting import ImageMaker, MountBench, poll_until

from hybrid.errors import BusyError, TimeoutExpiredError, UnsupportedError
from hybrid.mount import control


@trio_fixture
async def path(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    """A served socket in a directory whose name alone is longer than a socket address."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    listener = await control.listen(directory / "control")

    async def stats(request: control.Answer) -> control.Answer:
        return {"n": 1}

    async def crowd(request: control.Answer) -> control.Answer:
        return {"crowd": "x" * request.get("letters", 10_000)}

    async def fail(request: control.Answer) -> control.Answer:
        raise BusyError("not now", hint="later")

    nursery.start_soon(control.serve, listener, {"stats": stats, "crowd": crowd, "fail": fail})
    yield directory / "control"


async def test_an_answer(path: Path) -> None:
    assert await control.ask(path, {"command": "stats"}, 1) == {"n": 1}
    answer = await control.ask(path, {"command": "crowd"}, 1)
    assert answer is not None
    assert len(answer["crowd"]) == 10_000


async def test_unknown_commands_and_nonsense_get_an_error(path: Path) -> None:
    answer = await control.ask(path, {"command": "format"}, 1)
    assert answer == {"error": "no such command; there are: stats, crowd, fail"}
    client = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with control._short_path(path) as short, client:
        await client.connect(short)
        for line in (b"\n", b"[]\n", b'{"command": []}\n', b"\xff\n", b'{"command": "stats"}\n'):
            await client.send(line)
            assert (await client.recv(1000)).startswith(b'{"n"' if b"stats" in line else b'{"err')
        stream = trio.SocketStream(client)
        await stream.send_all(b"x" * 65537)  # no line at all: hung up on
        assert await stream.receive_some(1000) == b""
    assert await control.ask(path, {"command": "stats"}, 1) == {"n": 1}


async def test_orders(path: Path) -> None:
    def order(command: str, **fields: Any) -> dict[str, Any]:
        return control.order(path, command, 5, **fields)

    assert await trio.to_thread.run_sync(lambda: order("crowd", letters=3)) == {"crowd": "xxx"}
    with pytest.raises(BusyError, match="not now") as caught:
        await trio.to_thread.run_sync(order, "fail")
    assert caught.value.hint == "later"
    with pytest.raises(UnsupportedError, match="'format'"):
        await trio.to_thread.run_sync(order, "format")


def test_an_order_without_an_answer_ends(tmp_path: Path) -> None:
    with pytest.raises(TimeoutExpiredError, match="no answer"):
        control.order(tmp_path / "missing", "snapshot", 0.2)


def test_silence_is_bounded_for_all_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"silent{number}" for number in range(5)]
    silent = [socket.socket(socket.AF_UNIX) for _ in paths]
    for server, place in zip(silent, paths, strict=True):
        server.bind(str(place))
        server.listen()

    started = time.monotonic()
    assert control.ask_all([*paths, tmp_path / "missing"], "stats", 0.2) == [None] * 6
    assert time.monotonic() - started < 1
    for server in silent:
        server.close()


@pytest.mark.parametrize("mounted", [True, False])
def test_status_and_stop_of_a_real_server(
    bench: MountBench, images: ImageMaker, mounted: bool
) -> None:
    record = bench.mount(images.get("ext4"), *([bench.mountpoint] if mounted else []))
    path = bench.state / record["id"] / "control"
    (status,) = control.ask_all([path], "status", 1)
    assert status is not None
    assert (status["id"], status["pid"]) == (record["id"], record["pid"])
    assert status["handles"] == int(mounted)
    assert status["stats"]["bytes_total"] == record["size"]
    assert control.ask_all([path], "stop", 1) == [{"stopping": True}]
    poll_until(lambda: not path.exists(), "end of the server")
    bench.assert_clean()
