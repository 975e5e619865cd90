"""Taking a disk away whose removal hangs, over a fake of configfs: the part of the kernel is played
by a removal that waits for what the real one waits for. Real teardowns: test_configfs_guest.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.fake_configfs import FakeConfigfs
from support.mounting import poll_until

from hybrid.block import configfs, names, teardown
from hybrid.block.configfs import Target
from hybrid.errors import BusyError, TimeoutExpiredError

MIB = 1 << 20
TARGET = Target("0a1b2c3d", names.wwn_of("0a1b2c3d"))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfs:
    made = FakeConfigfs(tmp_path, monkeypatch)
    configfs.create_backstore(TARGET, MIB, read_only=True)
    configfs.export(TARGET)
    made.operations.clear()
    return made


def wait_for(path: Path, value: str) -> None:
    """In the child that removes."""
    deadline = time.monotonic() + 10
    while path.read_text() != value and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def hanging(fake: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfs:
    """The removal of the LUN ends when the ring was emptied with errors."""
    remove = teardown._remove

    def hang(target: Target) -> None:
        wait_for(target.backstore / "action/reset_ring", "2")
        remove(target)

    monkeypatch.setattr(teardown, "_remove", hang)
    return fake


def actions(fake: FakeConfigfs) -> list[str]:
    return [what.rpartition("/action/")[2] for what in fake.written() if "/action/" in what]


def test_with_a_living_handler_commands_are_left_to_it(fake: FakeConfigfs) -> None:
    teardown.take_down(TARGET, lambda: True, 10)
    assert fake.tree() == ["core"]
    assert actions(fake) == ["block_dev=0"]


def test_with_a_dead_handler_the_ring_is_emptied(hanging: FakeConfigfs) -> None:
    teardown.take_down(TARGET, lambda: False, 10)
    assert hanging.tree() == ["core"]
    # Unblocked first: a blocked device has sd try again for ever.
    assert actions(hanging)[:3] == ["block_dev=0", "block_dev=0", "reset_ring=2"]


def test_a_handler_that_dies_meanwhile(hanging: FakeConfigfs) -> None:
    answers = iter([True, True])
    teardown.take_down(TARGET, lambda: next(answers, False), 10)
    assert hanging.tree() == ["core"]
    assert actions(hanging)[0] == "block_dev=0"
    assert "reset_ring=2" in actions(hanging)


def test_a_handler_that_does_not_answer_is_told_of_in_time(hanging: FakeConfigfs) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutExpiredError, match=r"hybrid-0a1b2c3d within 0\.5 seconds"):
        teardown.take_down(TARGET, lambda: True, 0.5)
    assert time.monotonic() - start < 5
    assert actions(hanging) == ["block_dev=0"]
    assert TARGET.backstore.exists()
    # It goes on in the background, and ends when the kernel lets it.
    configfs.reset_ring(TARGET, 2)
    poll_until(lambda: not TARGET.hba.exists(), "the end of the removal")
    assert hanging.tree() == ["core"]


def test_what_the_removal_says_is_said(fake: FakeConfigfs) -> None:
    (TARGET.lun / "extra").symlink_to(TARGET.backstore)
    with pytest.raises(BusyError, match="lun_0"):
        teardown.take_down(TARGET, lambda: True, 10)


def test_nothing_to_remove_is_fine(fake: FakeConfigfs) -> None:
    teardown.take_down(TARGET, lambda: True, 10)
    teardown.take_down(TARGET, lambda: False, 10)
    assert fake.tree() == ["core"]
