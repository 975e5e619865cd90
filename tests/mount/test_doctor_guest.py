"""A kernel with TCMU: what ``hybrid doctor`` says of it, and what of its disks ``gc`` removes."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live_target import SIZE, exit_code, forked, live_target, new_target
from support.live_target import leftovers as in_configfs
from support.mount_driver import opener
from support.mounting import ImageMaker, poll_until

from hybrid.block import configfs
from hybrid.block.names import PARAMETERS, ROOT, Target
from hybrid.block.netlink_codec import (
    FAMILY,
    decode_family,
    encode_family_request,
    split_messages,
)
from hybrid.errors import BusyError
from hybrid.mount import leftover
from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.detach import detach
from hybrid.mount.doctor import DoctorCode, examine_machine
from hybrid.mount.garbage import collect_garbage
from hybrid.mount.leftover import Leftover
from hybrid.mount.leftovers import find_leftovers
from hybrid.mount.state import create_record, read_records
from hybrid.mount.target_leftovers import (
    check_unclaimed,
    check_unserved,
    find_hanging,
)
from hybrid.mount.tcmu_front import target_of
from hybrid.mount.tcmu_support import prepare_tcmu, tcmu_obstacle

pytestmark = pytest.mark.guest

MODULES = ["target_core_user", "tcm_loop"]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HYBRID_STATE_DIR", str(tmp_path / "state"))
    prepare_tcmu()
    assert in_configfs() == []
    yield
    assert in_configfs() == []


@pytest.fixture
def nothing_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover, "YOUNG_SECONDS", -1.0)


def found(target: Target) -> list[Leftover]:
    return [left for left in find_leftovers() if left.name == target.id]


def collect(target: Target) -> list[tuple[bool, Leftover]]:
    """What ``hybrid gc`` says of one disk, and whether it has removed it."""
    return [
        (outcome.removed, outcome.leftover)
        for outcome in collect_garbage()
        if outcome.leftover.name == target.id
    ]


def test_both_modes_are_usable() -> None:
    subprocess.run(["modprobe", "loop"], check=True)
    examined = examine_machine(None, [])
    assert (str(examined.tcmu), str(examined.fuse)) == ("usable", "usable")
    assert examined.code is DoctorCode.BOTH
    assert [item.text for item in examined.findings if item.name.startswith("module")] == [
        "loaded"
    ] * 4
    assert examined.leftovers == []


def test_the_look_before_each_mount_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.mount.tcmu_support.run_bounded", None)
    assert tcmu_obstacle() is None


def test_what_is_missing_is_loaded_and_mounted() -> None:
    subprocess.run(["umount", "/sys/kernel/config"], check=True)
    subprocess.run(["modprobe", "-r", *MODULES], check=True)
    examined = examine_machine(None, [])
    assert str(examined.tcmu) == "usable"
    texts = {item.name: item.text for item in examined.findings}
    assert "not loaded yet" in texts["module tcm_loop"]
    assert "is not there yet" in texts["configfs"]
    # To look at it has loaded nothing.
    assert not Path("/sys/module/tcm_loop").exists()
    assert tcmu_obstacle() is None
    assert Path("/sys/module/tcm_loop").exists()
    assert ROOT.is_dir()


def test_a_half_made_device_is_removed_once_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    target = new_target()
    configfs.create_backstore(target, SIZE, read_only=True)
    try:
        assert found(target) == []
        monkeypatch.setattr(leftover, "YOUNG_SECONDS", -1.0)
        ((removed, left),) = collect(target)
        assert removed
        assert "a TCMU device without a disk" in left.text
    finally:
        configfs.remove_backstore(target)


def test_a_disk_goes_when_nobody_serves_it_and_nobody_has_it_open(nothing_is_young: None) -> None:
    with live_target() as live:
        disk = live.disk(live.export())
        # It may be of a state directory that we know nothing of.
        assert found(live.target) == []
        with pytest.raises(BusyError, match="in use"):
            check_unserved(live.target)
        descriptor = os.open(disk, os.O_RDONLY)
        live.kill()
        ((removed, left),) = collect(live.target)
        assert not removed
        assert f"the TCMU disk {disk}" in left.text
        assert f"(pid {os.getpid()})" in left.remedy
        os.close(descriptor)
        ((removed, left),) = collect(live.target)
        assert removed
        assert in_configfs() == []


def test_a_mount_that_was_never_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command and server were killed when the device was there already."""
    record = create_record("image", "tcmu", "", {})
    configfs.create_backstore(target_of(record), SIZE, read_only=True)
    assert find_leftovers() == []
    monkeypatch.setattr(leftover, "YOUNG_SECONDS", -1.0)
    ((removed, _),) = collect(target_of(record))
    assert removed
    assert read_records() == []


def test_a_dead_mount_is_not_removed_since_it_can_be_resumed(
    images: ImageMaker, monkeypatch: pytest.MonkeyPatch, nothing_is_young: None, tmp_path: Path
) -> None:
    raw = images.get("ext4")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    origin = {"raw": str(raw), "opening": "", "writable": False, "faults": {}}
    record = attach(MountRequest(raw.name, opener(origin), origin, mountpoint, "tcmu"))
    try:
        os.kill(record.pid, signal.SIGKILL)
        os.waitpid(record.pid, 0)
        ((removed, left),) = collect(target_of(record))
        assert not removed
        assert f"`hybrid resume {record.id}`" in left.remedy
        # Not for another state directory either.
        monkeypatch.setenv("HYBRID_STATE_DIR", str(tmp_path / "other"))
        ((removed, left),) = collect(target_of(record))
        assert not removed
        assert "it is mounted" in left.remedy
        with pytest.raises(BusyError, match="another mount namespace"):
            check_unclaimed(Path(record.device))
    finally:
        assert detach(record)


def set_replies(value: bool) -> None:
    """Switch for the whole module whether netlink events want an answer (spec: tcmu 5)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as netlink:
        netlink.settimeout(5)
        netlink.send(encode_family_request(FAMILY, 1))
        family = decode_family(split_messages(netlink.recv(1 << 16))[0]).id
        body = struct.pack("=BBH HHB3x", 7, 2, 0, 5, 9, value)
        netlink.send(struct.pack("=IHHII", 16 + len(body), family, 5, 2, 0) + body)
        (answer,) = split_messages(netlink.recv(1 << 16))
        assert struct.unpack_from("=i", answer.payload) == (0,)


def enable(target: Target) -> None:
    """As another program would: it waits for the answers that are switched on."""
    target.backstore.mkdir(parents=True)
    for token in (f"dev_config={target.dev_config}", f"dev_size={SIZE}"):
        (target.backstore / "control").write_text(token)
    (target.backstore / "enable").write_text("1")


def test_a_process_that_hangs_is_told_with_the_way_out() -> None:
    target = new_target()
    set_replies(True)
    pid = forked(lambda: enable(target))
    try:
        poll_until(lambda: list(find_hanging()), "the wait in the kernel")
        (left,) = find_hanging()
        assert (left.kind, left.name, left.remove) == ("hang", str(pid), None)
        assert "1 to block_netlink, then 1 to reset_netlink, and 0 to block" in left.remedy
    finally:
        (PARAMETERS / "block_netlink").write_text("1")
        (PARAMETERS / "reset_netlink").write_text("1")
        code = exit_code(pid)
        (PARAMETERS / "block_netlink").write_text("0")
        set_replies(False)
        configfs.remove_backstore(target)
    assert code == 1
    assert list(find_hanging()) == []
