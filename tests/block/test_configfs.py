"""Making and removing targets, against a fake of configfs; the real one is in test_configfs_guest.

The fake is what makes each single step fail, which the kernel cannot be asked to do.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.fake_configfs import FakeConfigfs

from hybrid.block import configfs, names
from hybrid.block.configfs import Target
from hybrid.errors import (
    BusyError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    SystemSupportError,
)

MIB = 1 << 20
TARGET = Target("0a1b2c3d", names.wwn_of("0a1b2c3d"))
NUMBER = 0x0A1B2C3D
BACKSTORE = f"core/user_{NUMBER}/hybrid-0a1b2c3d"
FABRIC = "loopback/naa.368796200a1b2c3d"
COMPLETE = [
    "core",
    f"core/user_{NUMBER}",
    BACKSTORE,
    "loopback",
    FABRIC,
    f"{FABRIC}/tpgt_1",
    f"{FABRIC}/tpgt_1/lun/lun_0",
    f"{FABRIC}/tpgt_1/lun/lun_0/hybrid-0a1b2c3d",
]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfs:
    return FakeConfigfs(tmp_path, monkeypatch)


def make(target: Target = TARGET) -> tuple[str, str]:
    uio = configfs.create_backstore(target, 64 * MIB, read_only=True)
    return uio, configfs.export(target)


def test_names_follow_from_the_id() -> None:
    assert TARGET.wwn == "368796200a1b2c3d"
    assert TARGET.uio_label == f"tcm-user/{NUMBER}/hybrid-0a1b2c3d/hybrid/0a1b2c3d"


@pytest.mark.parametrize(
    ("target_id", "wwn"),
    [("0a1b2c3", "3" * 16), ("0A1B2C3D", "3" * 16), ("../../..", "3" * 16), ("0a1b2c3d", "4" * 16)],
)
def test_other_names_are_refused(target_id: str, wwn: str) -> None:
    with pytest.raises(ValueError, match="no id"):
        Target(target_id, wwn)


def test_every_attribute_is_written_in_order(fake: FakeConfigfs) -> None:
    assert configfs.create_backstore(TARGET, 64 * MIB, read_only=False) == "uio3"
    control = [
        "dev_config=hybrid/0a1b2c3d",
        "dev_size=67108864",
        "hw_block_size=512",
        "hw_max_sectors=2048",
        "max_data_area_mb=64",
        "nl_reply_supported=-1",
    ]
    assert fake.written() == [
        *(f"{BACKSTORE}/control={token}" for token in control),
        f"{BACKSTORE}/wwn/vpd_unit_serial=368796200a1b2c3d",
        f"{BACKSTORE}/attrib/cmd_time_out=0",
        f"{BACKSTORE}/attrib/emulate_write_cache=1",
        f"{BACKSTORE}/enable=1",
    ]
    assert configfs.find_uio(TARGET) == "uio3"


@pytest.mark.parametrize("size", [0, -512, 513])
def test_a_size_that_no_disk_has_is_refused(fake: FakeConfigfs, size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        configfs.create_backstore(TARGET, size, read_only=True)
    assert fake.operations == []


def test_a_target_comes_and_goes(fake: FakeConfigfs) -> None:
    assert make() == ("uio3", "7:0:1:0")
    assert fake.tree() == COMPLETE
    assert configfs.address(TARGET) == "7:0:1:0"
    assert configfs.list_targets() == [TARGET]
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    assert fake.tree() == ["core"]
    assert fake.uio_names() == []


def test_the_shared_directory_stays_for_others(fake: FakeConfigfs) -> None:
    other = Target("ffffffff", names.wwn_of("ffffffff"))
    make(other)
    before = fake.tree()
    make()
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    assert fake.tree() == before


def test_each_step_that_fails_is_undone(fake: FakeConfigfs) -> None:
    make()
    steps = len(fake.operations)
    assert steps >= 16
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    for step in range(steps):
        fake.operations.clear()
        fake.fail_at = (step, errno.EIO)
        with pytest.raises(SystemSupportError, match="Input/output error"):
            make()
        fake.fail_at = None
        assert len(fake.operations) > step
        if BACKSTORE in fake.tree():  # it was the export that failed
            assert fake.tree() == COMPLETE[:3]
            configfs.remove_backstore(TARGET)
        assert fake.tree() == ["core"], step


def test_an_interruption_is_undone(fake: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(target: Target) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(configfs, "find_uio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    assert fake.tree() == ["core"]


def test_removal_takes_what_is_there_at_every_stage(fake: FakeConfigfs) -> None:
    make()
    removal = [
        lambda: (TARGET.lun / TARGET.name).unlink(),
        lambda: TARGET.lun.rmdir(),
        lambda: TARGET.port_group.rmdir(),
        lambda: TARGET.fabric.rmdir(),
        lambda: TARGET.fabric.parent.rmdir(),
        lambda: TARGET.backstore.rmdir(),
        lambda: TARGET.hba.rmdir(),
    ]
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    for done in range(len(removal) + 1):
        make()
        for step in removal[:done]:
            step()
        configfs.unexport(TARGET)
        configfs.remove_backstore(TARGET)
        assert fake.tree() == ["core"], done


def test_removal_of_what_another_process_removes_meanwhile(
    fake: FakeConfigfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of our steps the other one has done it."""
    make()
    for name, gone in (("rmdir", os.rmdir), ("unlink", os.unlink)):
        wrapped = getattr(Path, name)

        def overtaken(path: Path, wrapped: object = wrapped, gone: object = gone) -> None:
            wrapped(path)  # type: ignore[operator]
            gone(path)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, overtaken)
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    assert fake.tree() == ["core"]


def test_removal_switches_netlink_replies_off_first(fake: FakeConfigfs) -> None:
    configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    (TARGET.backstore / "attrib/nl_reply_supported").write_text("1")
    fake.operations.clear()
    configfs.remove_backstore(TARGET)
    assert fake.operations == [
        ("write", f"{BACKSTORE}/attrib/nl_reply_supported=-1"),
        ("rmdir", BACKSTORE),
        ("rmdir", f"core/user_{NUMBER}"),
    ]


def test_an_exported_backstore_stays(fake: FakeConfigfs) -> None:
    make()
    with pytest.raises(BusyError):
        configfs.remove_backstore(TARGET)
    assert fake.tree() == COMPLETE


def test_a_name_in_use_is_left_alone(fake: FakeConfigfs) -> None:
    make()
    before = fake.tree()
    with pytest.raises(BusyError, match="the name is in use"):
        configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    with pytest.raises(BusyError, match="the name is in use"):
        configfs.export(TARGET)
    assert fake.tree() == before


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, PermissionNeededError),
        (errno.EROFS, PermissionNeededError),
        (errno.EBUSY, BusyError),
        (errno.EAGAIN, BusyError),
        (errno.ENOSPC, SystemSupportError),
        (errno.ENOMEM, SystemSupportError),
        (errno.EINVAL, SystemSupportError),
    ],
)
def test_errno_become_named_errors(fake: FakeConfigfs, code: int, kind: type[HybridError]) -> None:
    configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    enable = len(fake.operations) - 1
    configfs.remove_backstore(TARGET)
    fake.operations.clear()
    fake.fail_at = (enable, code)
    with pytest.raises(kind) as caught:
        configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    assert "enable" in caught.value.message
    assert "\n" not in str(caught.value)


def test_modules_that_are_missing_are_named(fake: FakeConfigfs) -> None:
    fake.fail_at = (0, errno.EINVAL)
    with pytest.raises(SystemSupportError, match="target_core_user is missing"):
        configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    fake.operations.clear()
    with pytest.raises(SystemSupportError, match="tcm_loop is missing"):
        configfs.export(TARGET)
    assert fake.tree() == ["core"]


def test_without_configfs_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "ROOT", tmp_path / "nothing")
    for call in (
        lambda: configfs.create_backstore(TARGET, MIB, True),
        lambda: configfs.export(TARGET),
    ):
        with pytest.raises(SystemSupportError) as caught:
            call()
        assert "configfs" in caught.value.hint
    configfs.unexport(TARGET)
    configfs.remove_backstore(TARGET)
    assert configfs.list_targets() == []


def test_actions_on_a_target_that_is_gone(fake: FakeConfigfs) -> None:
    for call in (
        lambda: configfs.block_device(TARGET, True),
        lambda: configfs.reset_ring(TARGET, 1),
        lambda: configfs.find_uio(TARGET),
        lambda: configfs.address(TARGET),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert fake.tree() == ["core"]


def test_actions_write_the_action_files(fake: FakeConfigfs) -> None:
    configfs.create_backstore(TARGET, 64 * MIB, read_only=True)
    fake.operations.clear()
    configfs.block_device(TARGET, True)
    configfs.reset_ring(TARGET, 1)
    configfs.block_device(TARGET, False)
    action = f"{BACKSTORE}/action"
    assert fake.written() == [
        f"{action}/block_dev=1",
        f"{action}/reset_ring=1",
        f"{action}/block_dev=0",
    ]


def test_half_made_targets_are_listed_and_others_are_not(fake: FakeConfigfs) -> None:
    lone_backstore = Target("00000001", names.wwn_of("00000001"))
    lone_fabric = Target("00000002", names.wwn_of("00000002"))
    configfs.create_backstore(lone_backstore, MIB, read_only=True)
    configfs.export(lone_fabric)
    (lone_fabric.lun / lone_fabric.name).unlink()
    make()
    for foreign in (
        "core/user_7",
        "core/user_7/hybrid-00000008",
        "core/user_8",
        "core/user_8/dev_8",
        "core/user_9",
        "core/user_9/hybrid-xyz",
        "loopback/naa.5000000000000001",
        "loopback/naa.3123456700000001",
    ):
        (fake.root / foreign).mkdir()
    assert configfs.list_targets() == [lone_backstore, lone_fabric, TARGET]
