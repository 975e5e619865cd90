"""Netlink events of real devices, and who is made to wait for whom.

The switch of the module (SET_FEATURES) is turned on here, as tcmu-runner or the reference daemon
do it, with messages written in this file; hybrid never sends that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from support.live_target import MIB, exit_code, forked, leftovers, new_target
from support.mounting import poll_until
from support.netlink_reset import reset_module_netlink

from hybrid.block import configfs, names
from hybrid.block.configfs import Target
from hybrid.block.netlink import EventSocket, serve_events
from hybrid.block.netlink_codec import Event, EventKind, decode_family, split_messages

pytestmark = pytest.mark.guest

_SET_FEATURES = 7
_SUPPORTS_REPLIES = 9


def switch_replies(on: bool) -> None:
    """The switch of the whole module."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as connection:
        connection.bind((0, 0))
        connection.settimeout(5)
        name = b"TCM-USER\0"
        body = struct.pack("=BBHHH", 3, 2, 0, 4 + len(name), 2) + name + bytes(3)
        connection.send(struct.pack("=IHHII", 16 + len(body), 16, 1, 1, 0) + body)
        family = decode_family(split_messages(connection.recv(65536))[0]).id
        body = struct.pack("=BBHHHB3x", _SET_FEATURES, 2, 0, 5, _SUPPORTS_REPLIES, on)
        connection.send(struct.pack("=IHHII", 16 + len(body), family, 5, 2, 0) + body)
        assert struct.unpack_from("=i", connection.recv(65536), 16) == (0,)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    assert leftovers() == []
    yield
    switch_replies(False)
    assert leftovers() == []


@pytest.fixture
def replies() -> Iterator[None]:
    """Somebody else has switched replies on."""
    switch_replies(True)
    yield
    switch_replies(False)


@pytest.fixture
def target() -> Iterator[Target]:
    made = new_target()
    configfs.create_backstore(made, MIB, read_only=True)
    yield made
    configfs.remove_backstore(made)


class Foreign:
    """A device of another program, for which the kernel waits for answers if it is told to."""

    def __init__(self) -> None:
        self.hba = names.ROOT / "core" / "user_77"
        self.backstore = self.hba / "foreign"
        self.backstore.mkdir(parents=True)
        for token in ("dev_config=foreign/x", f"dev_size={MIB}"):
            (self.backstore / "control").write_text(token)

    def enable(self) -> None:
        (self.backstore / "enable").write_text("1")

    def enable_unanswered(self) -> None:
        """Its daemon answered, and has died since."""
        switch_replies(False)
        self.enable()
        (self.backstore / "attrib/nl_reply_supported").write_text("1")
        switch_replies(True)

    def remove(self) -> None:
        self.backstore.rmdir()

    def clean_up(self) -> None:
        for path in (self.backstore, self.hba):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    made = Foreign()
    yield made
    switch_replies(False)
    made.clean_up()


def errno_of(work: Callable[[], None]) -> Callable[[], None]:
    """For ``forked``: exits with the errno of an OSError, 0 without one."""

    def run() -> None:
        try:
            work()
        except OSError as error:
            os._exit(error.errno or 255)

    return run


def hangs_in_kernel(pid: int) -> bool:
    """In uninterruptible sleep, where it waits for a netlink answer."""
    with contextlib.suppress(FileNotFoundError):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state == "D" and "tcmu" in Path(f"/proc/{pid}/wchan").read_text()
    return False


async def receive(events: EventSocket, count: int) -> list[Event]:
    found: list[Event] = []
    with trio.fail_after(10):
        while len(found) < count:
            found += await events.receive()
    return found


def test_devices_of_ours_do_not_wait_although_replies_are_on(replies: None) -> None:
    target = new_target()
    creator = forked(lambda: configfs.create_backstore(target, MIB, read_only=True))
    assert exit_code(creator) == 0
    # With a listener that does not answer, the kernel would wait at the removal as well.
    with EventSocket() as events:
        remover = forked(lambda: configfs.remove_backstore(target))
        assert exit_code(remover) == 0
        (event,) = trio.run(receive, events, 1)
    assert (event.kind, event.label) == (EventKind.REMOVED, target.uio_label)


def test_a_server_does_not_listen_in_vain(target: Target, replies: None, foreign: Foreign) -> None:
    """A listener would make the removal of a device of others wait for its daemon, dead or not."""

    async def main() -> None:
        with trio.fail_after(5):
            await serve_events(target)

    trio.run(main)
    foreign.enable_unanswered()
    assert exit_code(forked(foreign.remove)) == 0


def test_a_listener_in_vain_would_do_harm(replies: None, foreign: Foreign) -> None:
    """Why a server does not listen: what the kernel does if it did. And the way out."""
    foreign.enable_unanswered()
    with EventSocket():
        remover = forked(foreign.remove)
        poll_until(lambda: hangs_in_kernel(remover), "the removal hangs")
        reset_module_netlink()
        assert exit_code(remover) == 0


def test_an_enable_that_hangs_can_be_let_go(replies: None, foreign: Foreign) -> None:
    """Python tries again after EINTR, and then meets the block."""
    enabler = forked(errno_of(foreign.enable))
    poll_until(lambda: hangs_in_kernel(enabler), "enable hangs")
    reset_module_netlink()
    assert exit_code(enabler) == errno.EAGAIN


def test_the_removal_is_agreed_to_and_changes_are_refused(target: Target, replies: None) -> None:
    attributes = target.backstore / "attrib"
    (attributes / "nl_reply_supported").write_text("1")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_events, target)
            await trio.testing.wait_all_tasks_blocked()  # it listens
            resize = errno_of(lambda: [(attributes / "dev_size").write_text(str(2 * MIB))])
            assert await trio.to_thread.run_sync(exit_code, forked(resize)) == errno.EOPNOTSUPP
            remover = forked(target.backstore.rmdir)
            assert await trio.to_thread.run_sync(exit_code, remover) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not target.backstore.exists()


def test_devices_of_others_get_no_answer(target: Target, replies: None, foreign: Foreign) -> None:
    attributes = target.backstore / "attrib"
    (attributes / "nl_reply_supported").write_text("1")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_events, target)
            await trio.testing.wait_all_tasks_blocked()  # it listens
            enabler = forked(errno_of(foreign.enable))
            poll_until(lambda: hangs_in_kernel(enabler), "enable hangs")
            # A later event of ours is answered: the one before has been looked at.
            resize = errno_of(lambda: [(attributes / "dev_size").write_text(str(2 * MIB))])
            assert await trio.to_thread.run_sync(exit_code, forked(resize)) == errno.EOPNOTSUPP
            assert hangs_in_kernel(enabler)
            reset_module_netlink()
            assert await trio.to_thread.run_sync(exit_code, enabler) == errno.EAGAIN
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_fifty_devices_at_once_lose_no_event_and_an_overrun_is_survived() -> None:
    targets = [new_target() for _ in range(50)]
    with EventSocket() as events, EventSocket(receive_buffer=4096) as small:
        try:
            for target in targets:
                configfs.create_backstore(target, MIB, read_only=True)

            async def main() -> None:
                found = await receive(events, 50)
                assert {event.label for event in found} == {made.uio_label for made in targets}
                assert {event.kind for event in found} == {EventKind.ADDED}
                assert len({event.minor for event in found}) == 50
                assert events.overruns == 0
                while not small.overruns:
                    await small.receive()

            trio.run(main)
        finally:
            for target in targets:
                configfs.remove_backstore(target)

        async def after() -> None:
            last = (await receive(events, 50))[-1]
            assert (last.kind, last.label) == (EventKind.REMOVED, targets[-1].uio_label)
            assert await receive(small, 1)

        trio.run(after)
