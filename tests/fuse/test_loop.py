"""Loop devices over a plain file: how they are set up and how they go."""

import os
import random
from pathlib import Path

import pytest
from support.mounting import poll_until

import hybrid.fuse.loop as loop_module
from hybrid.errors import BusyError, SystemSupportError
from hybrid.fuse.loop import attach_loop, backing_file, clear_loop, is_loop_over, uses_direct_io


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(5).randbytes(1 << 20))
    return path


def attribute(device: Path, name: str) -> str:
    return Path(f"/sys/block/{device.name}/{name}").read_text().strip()


def test_a_loop_device_is_read_only_direct_and_goes_with_its_last_user(backing: Path) -> None:
    loop = attach_loop(backing)
    assert uses_direct_io(loop.path)
    assert is_loop_over(loop.path, backing)
    assert attribute(loop.path, "ro") == "1"
    assert attribute(loop.path, "loop/autoclear") == "1"
    assert attribute(loop.path, "queue/logical_block_size") == "512"
    assert loop.path.read_bytes() == backing.read_bytes()
    loop.close()
    poll_until(lambda: backing_file(loop.path) != str(backing), "autoclear")


def test_a_device_in_use_is_cleared_later(backing: Path) -> None:
    loop = attach_loop(backing)
    clear_loop(loop.path)
    assert is_loop_over(loop.path, backing)
    loop.close()
    poll_until(lambda: backing_file(loop.path) != str(backing), "clear")
    clear_loop(loop.path)  # a free one is fine


def test_a_lost_race_for_a_device_is_run_again(
    backing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = attach_loop(backing)
    real = loop_module._free_number
    answers = [int(taken.path.name.removeprefix("loop"))] * 3

    def free_number(control_fd: int) -> int:
        return answers.pop() if answers else real(control_fd)

    monkeypatch.setattr(loop_module, "_free_number", free_number)
    other = attach_loop(backing)
    assert other.path != taken.path
    assert answers == []
    other.close()
    monkeypatch.setattr(
        loop_module, "_free_number", lambda fd: int(taken.path.name.removeprefix("loop"))
    )
    with pytest.raises(BusyError, match="no free loop device"):
        attach_loop(backing)
    taken.close()


def test_no_more_loop_devices(backing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # /dev/null answers the ioctl with ENOTTY; a full table answers with ENOSPC.
    monkeypatch.setattr(loop_module, "_CONTROL", Path(os.devnull))
    with pytest.raises(SystemSupportError, match="no free loop device"):
        attach_loop(backing)


def test_a_backing_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemSupportError, match=r"cannot open .*/nothing"):
        attach_loop(tmp_path / "nothing")


def test_a_backing_file_without_direct_io(monkeypatch: pytest.MonkeyPatch, backing: Path) -> None:
    monkeypatch.setattr(loop_module, "uses_direct_io", lambda path: False)
    with pytest.raises(SystemSupportError, match="refuses direct I/O"):
        attach_loop(backing)
