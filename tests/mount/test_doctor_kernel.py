"""What a kernel offers, judged by trees of files; and modprobe run as a program."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from support.fake_machine import RELEASE, TARGET_MODULES, FakeMachine

from hybrid.errors import (
    HybridError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
)
from hybrid.mount import fuse_support, tcmu_support
from hybrid.mount.findings import Finding, Status
from hybrid.mount.kernel_support import Capability, ModuleState, missing_module, module_state
from hybrid.mount.tcmu_support import examine_tcmu, prepare_tcmu


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "machine")


def test_a_loaded_module(fake: FakeMachine) -> None:
    fake.load("tcm_loop")
    assert module_state(fake.machine, "tcm_loop") is ModuleState.LOADED


def test_a_module_that_is_just_being_loaded_is_not_there_yet(fake: FakeMachine) -> None:
    fake.write("sys/module/tcm_loop/initstate", "coming\n")
    assert module_state(fake.machine, "tcm_loop") is ModuleState.LOADABLE


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("target_core_user", "module/target_core_user/parameters"),
        ("tcm_loop", "bus/tcm_loop_bus"),
        ("sd_mod", "bus/scsi/drivers/sd"),
        ("uio", "class/uio"),
    ],
)
def test_a_module_that_is_built_in_is_told_by_what_it_does(
    fake: FakeMachine, name: str, sign: str
) -> None:
    assert module_state(fake.machine, name) is ModuleState.MISSING
    fake.build_in(sign)
    assert module_state(fake.machine, name) is ModuleState.BUILT_IN


@pytest.mark.parametrize(
    "file", ["tcm_loop.ko", "tcm_loop.ko.xz", "tcm-loop.ko.zst", "../tcm_loop.ko"]
)
def test_a_module_is_found_in_the_index(fake: FakeMachine, file: str) -> None:
    fake.install(file)
    assert module_state(fake.machine, "tcm_loop") is ModuleState.LOADABLE
    fake.install(file, index="modules.builtin")
    assert module_state(fake.machine, "tcm_loop") is ModuleState.BUILT_IN


@pytest.mark.parametrize("file", ["xtcm_loop.ko", "tcm_loop2.ko", "tcm_loop/x.ko"])
def test_another_module_is_not_taken_for_it(fake: FakeMachine, file: str) -> None:
    fake.install(file)
    assert module_state(fake.machine, "tcm_loop") is ModuleState.MISSING


def test_a_module_that_others_need_is_no_file_of_its_own(fake: FakeMachine) -> None:
    fake.write(f"lib/modules/{RELEASE}/modules.dep", "kernel/a.ko: kernel/b/uio.ko\n")
    assert module_state(fake.machine, "uio") is ModuleState.MISSING


@pytest.mark.parametrize(
    ("release", "installed", "hint"),
    [
        ("5.15.167.4-microsoft-standard-WSL2", "", "WSL lacks it"),
        ("6.1.0-25-cloud-amd64", "", "install linux-image-amd64 and boot that"),
        ("6.1.0-25-cloud-arm64", "", "install linux-image-arm64 and boot that"),
        ("6.8.0-45-generic", "6.8.0-45-generic", "linux-modules-extra-6.8.0-45-generic"),
        ("6.1.0-25-amd64", "6.1.0-26-amd64", "only those of 6.1.0-26-amd64: reboot"),
        ("6.18.0-custom", "", "boot a kernel with CONFIG_TCM_USER2"),
    ],
)
def test_where_to_get_a_module(fake: FakeMachine, release: str, installed: str, hint: str) -> None:
    fake.release = release
    if installed:
        fake.write(f"lib/modules/{installed}/modules.dep", "")
    error = missing_module(fake.machine, "target_core_user", "CONFIG_TCM_USER2")
    assert error.message == f"the kernel {release} has no target_core_user"
    assert hint in error.hint


def ready(fake: FakeMachine) -> None:
    fake.load(*TARGET_MODULES)
    fake.mount_configfs()


def problems(fake: FakeMachine) -> list[Finding]:
    findings, verdict = examine_tcmu(fake.machine)
    found = [finding for finding in findings if finding.status is Status.PROBLEM]
    assert verdict.usable is verdict.mounts is not found
    assert verdict.reason == (found[0].text if found else "")
    return found


def test_a_machine_with_all_of_it(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(fake)
    assert problems(fake) == []
    # Nothing is started and nothing mounted.
    monkeypatch.setattr(tcmu_support, "run_bounded", None)
    monkeypatch.setattr(tcmu_support, "mount", None)
    prepare_tcmu(fake.machine)


def test_loadable_modules_are_no_problem(fake: FakeMachine) -> None:
    fake.install("target_core_user.ko", "tcm_loop.ko", "sd_mod.ko", "uio.ko", "configfs.ko")
    assert problems(fake) == []


def test_a_kernel_without_anything(fake: FakeMachine) -> None:
    names = [found.name for found in problems(fake)]
    assert names == [*(f"module {name}" for name in TARGET_MODULES), "configfs"]
    with pytest.raises(SystemSupportError, match=r"has no target_core_user .*CONFIG_TCM_USER2"):
        prepare_tcmu(fake.machine)


def refuses(fake: FakeMachine, kind: type[HybridError], message: str) -> None:
    """Doctor and mount say the same."""
    assert message in problems(fake)[0].text
    with pytest.raises(kind, match=message):
        prepare_tcmu(fake.machine)


def test_not_root(fake: FakeMachine) -> None:
    ready(fake)
    fake.euid = 1000
    refuses(fake, PermissionNeededError, "mode tcmu needs root")


def test_an_ordinary_user_is_told_of_nothing_else(fake: FakeMachine) -> None:
    """What only root could do says nothing about the machine."""
    fake.euid = 1000
    fake.capabilities(0)
    fake.install("target_core_user.ko", "tcm_loop.ko", "sd_mod.ko", "uio.ko", "configfs.ko")
    line = f"22 1 0:5 / {fake.root / 'dev'} rw - devtmpfs dev rw\n"
    fake.write("proc/self/mountinfo", line)
    assert [found.name for found in problems(fake)] == ["rights"]


def test_a_root_without_rights(fake: FakeMachine) -> None:
    ready(fake)
    fake.without(Capability.SYS_ADMIN)
    refuses(fake, PermissionNeededError, "needs CAP_SYS_ADMIN")


def test_a_root_of_a_user_namespace(fake: FakeMachine) -> None:
    ready(fake)
    fake.write("proc/self/uid_map", "0 100000 65536\n")
    refuses(fake, PermissionNeededError, "not of a user namespace")


def test_a_kernel_without_user_namespaces(fake: FakeMachine) -> None:
    ready(fake)
    (fake.root / "proc/self/uid_map").unlink()
    assert problems(fake) == []


def test_modules_that_may_not_be_loaded(fake: FakeMachine) -> None:
    fake.install("target_core_user.ko", "tcm_loop.ko", "sd_mod.ko", "uio.ko", "configfs.ko")
    fake.without(Capability.SYS_MODULE)
    refuses(fake, PermissionNeededError, "this process may not load modules")
    fake.write("proc/sys/kernel/modules_disabled", "1\n")
    refuses(fake, SystemSupportError, "kernel.modules_disabled is set")
    fake.load(*TARGET_MODULES)
    fake.mount_configfs()
    assert problems(fake) == []


def test_device_nodes_come_from_somewhere(fake: FakeMachine) -> None:
    ready(fake)
    fake.without(Capability.MKNOD)
    line = "22 1 0:5 / {} rw - {} dev rw\n"
    fake.write("proc/self/mountinfo", line.format(fake.root / "dev", "tmpfs"))
    refuses(fake, PermissionNeededError, "is no devtmpfs")
    fake.write("proc/self/mountinfo", line.format(fake.root / "dev", "devtmpfs"))
    assert problems(fake) == []


class Modprobe:
    """A program in PATH that stands for modprobe: its code, and what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked = directory / "asked"

    def does(self, script: str) -> None:
        program = self.directory / "modprobe"
        program.write_text(f'#!/bin/sh\necho "$@" >> {self.asked}\n{script}\n')
        program.chmod(0o755)


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modprobe:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return Modprobe(directory)


def test_only_modules_that_are_missing_are_loaded(fake: FakeMachine, modprobe: Modprobe) -> None:
    fake.load("uio", "sd_mod")
    fake.install("target_core_user.ko", "tcm_loop.ko", "configfs.ko")
    modprobe.does(f"mkdir -p {fake.root}/sys/kernel/config/target")
    prepare_tcmu(fake.machine)
    assert modprobe.asked.read_text() == "--all target_core_user tcm_loop\n"


def test_what_modprobe_says_is_told(fake: FakeMachine, modprobe: Modprobe) -> None:
    fake.install("target_core_user.ko", "tcm_loop.ko", "sd_mod.ko", "uio.ko", "configfs.ko")
    modprobe.does("echo 'modprobe: ERROR: Key was rejected by service' >&2; exit 1")
    with pytest.raises(SystemSupportError) as caught:
        prepare_tcmu(fake.machine)
    assert "failed: modprobe: ERROR: Key was rejected by service" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_modprobe_that_hangs_is_given_up(
    fake: FakeMachine, modprobe: Modprobe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.install("target_core_user.ko", "tcm_loop.ko", "sd_mod.ko", "uio.ko", "configfs.ko")
    os.mkfifo(tmp_path / "gate")
    modprobe.does(f"read line < {tmp_path / 'gate'}")
    monkeypatch.setattr(tcmu_support, "_LOAD_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(TimeoutExpiredError, match="modprobe target_core_user"):
        prepare_tcmu(fake.machine)
    assert time.monotonic() - started < 5
    (tmp_path / "gate").write_text("go\n")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENODEV, "cannot mount configfs on .*: No such device"),
        (errno.EBUSY, "but there is no .*/target"),  # somebody else mounted it
    ],
)
def test_configfs_that_does_not_come(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def mount(source: Path, target: Path, fstype: str, flags: int, options: str) -> None:
        assert (target, fstype) == (fake.root / "sys/kernel/config", "configfs")
        raise OSError(number, os.strerror(number))

    fake.load(*TARGET_MODULES)
    fake.build_in("kernel/config")
    monkeypatch.setattr(tcmu_support, "mount", mount)
    with pytest.raises(SystemSupportError, match=message):
        prepare_tcmu(fake.machine)


def test_kernels_too_old_for_loop_devices(fake: FakeMachine) -> None:
    fake.release = "5.4.0-200-generic"
    findings, verdict = fuse_support.examine_fuse(fake.machine)
    (loop,) = [found for found in findings if found.name == "loop devices"]
    assert (loop.status, loop.remedy) == (Status.WARNING, "boot one from 5.8 on")
    assert not verdict.mounts


@pytest.mark.parametrize(
    ("installed", "built_in", "remedy"),
    [
        (["loop.ko"], [], "modprobe loop"),
        ([], ["module/loop"], "needs the device passed in"),
        ([], [], "CONFIG_BLK_DEV_LOOP"),
    ],
)
def test_no_loop_devices(
    fake: FakeMachine, installed: list[str], built_in: list[str], remedy: str
) -> None:
    fake.install(*installed)
    fake.build_in(*built_in)
    findings, verdict = fuse_support.examine_fuse(fake.machine)
    (loop,) = [found for found in findings if found.name == "loop devices"]
    assert remedy in loop.remedy
    assert str(verdict).startswith("usable with --no-mount only: no loop devices: cannot open")


def test_file_systems(fake: FakeMachine) -> None:
    fake.write("proc/filesystems", "nodev\tproc\n\text4\n\tbtrfs\n")
    fake.install("xfs.ko", "erofs.ko.xz")
    found = fuse_support.examine_filesystems(fake.machine)
    assert found.text == "ext4, btrfs available; xfs, erofs loadable; squashfs missing"
    assert "squashfs" in found.remedy
    fake.install("xfs.ko", "erofs.ko", "squashfs.ko")
    assert fuse_support.examine_filesystems(fake.machine).status is Status.OK
