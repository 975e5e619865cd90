"""What the threads and tasks of a conversion share: places to work, pipes, feeds, memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import trio
from support.mounting import poll_until

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.feed import MEMORY_BYTES, Feed, RunAhead
from hybrid.build.convert.memory import FILE_NAME, Memory, Remembered
from hybrid.build.convert.options import SourceLayer
from hybrid.build.convert.pipe import Pipe, StoppedError, reason
from hybrid.build.convert.shares import Shares
from hybrid.core.byte_stream import BlobContent, ByteStream
from hybrid.core.device import Buffer
from hybrid.core.reference import RegistryReference
from hybrid.errors import FormatError

MIB = 1 << 20


def test_no_more_threads_work_than_there_are_cores() -> None:
    cores = Cores(2)
    working, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal working, most
        with cores.work():
            for _ in range(50):
                with lock:
                    working += 1
                    most = max(most, working)
                time.sleep(0)
                with lock:
                    working -= 1
                cores.pass_on()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= 2


def test_free_cores_can_be_had() -> None:
    cores = Cores(4)
    with cores.work(), cores.more(3) as first, cores.more(3) as second:
        assert (first, second) == (3, 2)
    with cores.work(), cores.more(9) as all_of_them:
        assert all_of_them == 4


def test_a_pipe_with_one_core() -> None:
    """Both sides make progress though only one may work at a time."""
    cores = Cores(1)
    pipe = Pipe(cores, 2)
    got: list[Buffer] = []

    def put() -> None:
        with cores.work():
            for number in range(1, 100):
                pipe.put(bytes([number]))
        pipe.end()

    thread = threading.Thread(target=put)
    thread.start()
    with cores.work():
        while piece := pipe.get():
            got.append(piece)
        assert pipe.get() == b""
    thread.join(30)
    assert b"".join(got) == bytes(range(1, 100))


def test_a_pipe_that_is_stopped() -> None:
    cores = Cores(2)
    pipe = Pipe(cores, 1)
    ended: list[str] = []

    def put() -> None:
        with cores.work():
            try:
                while True:
                    pipe.put(b"x")
            except StoppedError:
                ended.append("stopped")

    thread = threading.Thread(target=put)
    thread.start()
    with cores.work():
        assert pipe.get() == b"x"
    pipe.stop()
    thread.join(30)
    assert ended == ["stopped"]
    with cores.work(), pytest.raises(StoppedError):
        pipe.get()


class Numbered(ByteStream):
    """Pieces of 256 KiB that are filled with their number; then an error, if there is one."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.name = "numbered"
        self.given = 0
        self._count = count
        self._error = error

    async def read(self) -> Buffer:
        await trio.lowlevel.checkpoint()
        if self.given == self._count:
            if self._error is not None:
                raise self._error
            return b""
        self.given += 1
        return bytes([self.given % 251]) * (MIB // 4)


def content_of(stream: ByteStream) -> BlobContent:
    async def open_stream() -> ByteStream:
        return stream

    return BlobContent(open_stream)


def read_all(feed: Feed, cores: Cores) -> bytes:
    parts = []
    with cores.work():
        while piece := feed.read(1):
            parts.append(bytes(piece))
    feed.close()
    return b"".join(parts)


def expected(count: int) -> bytes:
    return b"".join(bytes([number % 251]) * (MIB // 4) for number in range(1, count + 1))


@pytest.mark.parametrize("limit", [0, 10 * MIB, 1 << 40])
async def test_a_feed_runs_ahead_as_far_as_it_may(tmp_path: Path, limit: int) -> None:
    cores, stream = Cores(1), Numbered(100)
    directory = tmp_path / "spool"
    directory.mkdir()
    ahead = RunAhead(directory, limit)
    gone = 0

    def advance(count: int) -> None:
        nonlocal gone
        gone += count

    feed = Feed(cores, ahead, advance)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.fill, content_of(stream))
        wanted = min(100, (MEMORY_BYTES + limit) // (MIB // 4))
        with trio.fail_after(30):
            while stream.given < wanted:  # noqa: ASYNC110 - what others count
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert stream.given <= wanted + 1
        assert ahead.used <= limit
        assert await trio.to_thread.run_sync(read_all, feed, cores) == expected(100)
    await trio.testing.wait_all_tasks_blocked()
    assert gone == 25 * MIB
    assert ahead.used == 0
    assert not list(directory.iterdir())


async def test_a_feed_without_disk_space(tmp_path: Path) -> None:
    """What cannot be kept is fetched when it is needed."""
    cores = Cores(1)
    feed = Feed(cores, RunAhead(tmp_path / "missing", 1 << 40))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.fill, content_of(Numbered(60)))
        assert await trio.to_thread.run_sync(read_all, feed, cores) == expected(60)


async def test_a_feed_that_fails(tmp_path: Path) -> None:
    """The thread has no end to see, but for one that says why."""
    cores = Cores(1)
    feed = Feed(cores, None)
    with pytest.RaisesGroup(FormatError, StoppedError):
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read_all, feed, cores)
            nursery.start_soon(feed.fill, content_of(Numbered(3, FormatError("damaged"))))


async def test_a_thread_that_fails_ends_its_feed() -> None:
    feed, stream = Feed(Cores(1), None), Numbered(1 << 40)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.fill, content_of(stream))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.to_thread.run_sync(feed.stop)


class Local(ByteStream):
    """Pieces of one byte, which a thread reads; then an error, if there is one."""

    name = "local"
    local = True

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.left = count
        self.error = error
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.is_closed = False

    async def read(self) -> Buffer:
        raise AssertionError("the thread reads it")

    def read_local(self) -> Buffer:
        self.inside.set()
        self.go_on.wait(30)
        assert not self.is_closed
        if self.left:
            self.left -= 1
            return b"x"
        if self.error:
            raise self.error
        return b""

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_local_feed_is_read_by_the_thread() -> None:
    cores, stream = Cores(1), Local(5)
    gone: list[int] = []
    feed = Feed(cores, None, gone.append)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.fill, content_of(stream))
            assert await trio.to_thread.run_sync(read_all, feed, cores) == b"xxxxx"
    assert stream.is_closed
    assert sum(gone) == 5


async def test_a_local_feed_that_fails() -> None:
    """The thread has the reason; the task ends without one."""
    cores, stream = Cores(1), Local(2, FormatError("damaged"))
    feed = Feed(cores, None)
    with pytest.RaisesGroup(FormatError), trio.fail_after(30):
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            nursery.start_soon(feed.fill, content_of(stream))
            nursery.start_soon(trio.to_thread.run_sync, read_all, feed, cores)
    assert stream.is_closed


async def test_a_local_stream_is_not_closed_while_the_thread_is_inside() -> None:
    cores, stream = Cores(1), Local(1 << 40)
    feed = Feed(cores, None)
    stream.go_on.clear()
    with pytest.RaisesGroup(StoppedError), trio.fail_after(30):
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(feed.fill, content_of(stream))
                    nursery.start_soon(trio.to_thread.run_sync, read_all, feed, cores)
                    await trio.to_thread.run_sync(stream.inside.wait)
                    scope.cancel()
                    nursery.start_soon(_go_on, stream)
    assert stream.is_closed


async def _go_on(stream: Local) -> None:
    """When the cancelled task waits for the thread."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not stream.is_closed
    stream.go_on.set()


def test_memory(tmp_path: Path) -> None:
    layer = Remembered("sha256:a", 7, "sha256:below")
    here, there = (RegistryReference("host:5000", name) for name in ("here", "there"))
    memory = Memory(tmp_path / "cache")
    assert memory.find("key") is None
    memory.add("key", layer)
    memory.add_place("sha256:a", here)
    memory.add_place("sha256:a", there)
    memory.close()
    memory = Memory(tmp_path / "cache")
    assert memory.find("key") == layer
    assert memory.places("sha256:a", "host:5000") == ["there", "here"]
    assert memory.places("sha256:a", "other") == []
    memory.add_place("sha256:a", here)
    assert memory.places("sha256:a", "host:5000") == ["here", "there"]
    memory.close()
    assert memory.find("key") is None


def test_memory_of_another_version(tmp_path: Path) -> None:
    import sqlite3

    Memory(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
        database.execute("DROP TABLE layers")
    database.close()
    memory = Memory(tmp_path)
    memory.add("key", Remembered("sha256:a", 7, ""))
    assert memory.find("key") is not None
    memory.close()


@pytest.mark.parametrize("trouble", ["damaged", "a file", "of others"])
def test_memory_that_is_of_no_use(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is converted anew, with one warning."""
    directory = tmp_path / "cache"
    if trouble == "a file":
        directory.write_text("")
    else:
        directory.mkdir()
    if trouble == "damaged":
        (directory / FILE_NAME).write_bytes(b"no database" * 1000)
    if trouble == "of others":
        directory.chmod(0o777)
    memory = Memory(directory)
    memory.add("key", Remembered("sha256:a", 7, ""))
    memory.add_place("sha256:a", RegistryReference("host", "here"))
    assert memory.find("key") is None
    assert memory.places("sha256:a", "host") == []
    memory.close()
    assert len(caplog.records) == 1


def test_shares_count_each_second_once() -> None:
    shares = Shares()

    def burn(seconds: float) -> None:
        start = time.thread_time()
        poll_until(lambda: time.thread_time() - start > seconds, "processor time")

    start = time.thread_time()
    with shares.of("outer"):
        burn(0.001)
        with shares.of("inner"), shares.of("digest"):
            burn(0.001)
    passed = time.thread_time() - start
    assert set(shares.seconds) == {"outer", "inner", "digest"}
    assert shares.seconds["outer"] > 0
    assert shares.seconds["digest"] > 0
    assert sum(shares.seconds.values()) <= passed


@pytest.mark.parametrize("early", [True, False])
async def test_no_thread_waits_for_one_that_never_began(early: bool) -> None:
    """Cancelled before its threads begin, or when the first one has: both end."""
    cores, shares = Cores(2), Shares()
    layer = SourceLayer("sha256:a", 1, "sha256:b")
    expanding = Expanding(layer, "layer", Feed(cores, None), cores, shares)
    with trio.fail_after(30), trio.CancelScope() as scope:

        def read(expanding: Expanding) -> None:
            with cores.work():
                trio.from_thread.run_sync(scope.cancel)
                expanding.read(1)

        if early:
            scope.cancel()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expanding.expand)
                await expanding.feed_to(read)
        except* StoppedError:
            pass
    assert scope.cancel_called


async def test_what_is_expanded_ahead_and_never_applied() -> None:
    """Its pipe is full, and nobody reads from it: it ends all the same."""
    cores = Cores(2)
    layer = SourceLayer("sha256:a", 1, "sha256:b")
    feed = Feed(cores, None)
    expanding = Expanding(layer, "layer", feed, cores, Shares())
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.fill, content_of(Numbered(1 << 40)))
            nursery.start_soon(expanding.expand)
            while not expanding.pipe.is_full:  # noqa: ASYNC110 - a thread fills it
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_a_thread_that_fails_when_the_others_have_stopped_already() -> None:
    """Its error is the reason, though its task was cancelled meanwhile."""
    cores = Cores(2)
    expanding = Expanding(
        SourceLayer("sha256:a", 1, "sha256:b"), "layer", Feed(cores, None), cores, Shares()
    )

    def fail_late(stopped: Expanding) -> None:
        with pytest.raises(StoppedError):
            stopped.pipe.get()  # until the others have stopped
        raise FormatError("damaged")

    async def stop_first() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        raise StoppedError

    async def both() -> None:
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(expanding.feed_to, fail_late)
                nursery.start_soon(stop_first)
        except BaseExceptionGroup as group:
            raise reason(group) from None

    with trio.fail_after(30), pytest.raises(FormatError, match="damaged"):
        await both()
