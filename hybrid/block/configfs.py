"""The kernel's side of a TCMU disk: backstore and loopback target in configfs.

    core/user_<N>/hybrid-<id>          the backstore, in an HBA of its own; N = int(id, 16)
    loopback/naa.<wwn>/tpgt_1          the target port group, with nexus and address
    loopback/naa.<wwn>/tpgt_1/lun/lun_0/hybrid-<id>   a link to the backstore: the disk exists

All of it below ``names.ROOT`` (spec: tcmu 2; kernel: Documentation/target/). Functions are
synchronous and may block in the kernel: ``export`` until a handler answers the scan, ``unexport``
until the last command is answered. Callers bound them (``hybrid.core.bounded``), and never call
them in the process that answers.

Processes need no lock against each other, since each target has names of its own, with one
exception: the directory ``loopback``, which the first target makes and the last one removes. Both
happen under flock(2) on ``names.ROOT``.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hybrid.block import names
from hybrid.block.kernel_files import (
    explain,
    locked,
    make_directory,
    read_value,
    remove_directory,
    remove_link,
    write_token,
)
from hybrid.block.names import Target as Target
from hybrid.block.names import wwn_of
from hybrid.errors import BusyError, HybridError, NotFoundError, SystemSupportError

logger = logging.getLogger(__name__)

BLOCK_SIZE = 512
"""Bytes of a logical block."""
MAX_SECTORS = 2048
"""Blocks of the largest request, 1 MiB. The kernel's default of 128 halves the speed."""
DATA_AREA_MIB = 64
"""MiB that the data of commands in flight may take; pages are allocated when they are used."""

_ADDRESS = re.compile(r"\d+:\d+:\d+")


def create_backstore(target: Target, size: int, read_only: bool) -> str:
    """Make and enable the backstore of ``size`` bytes; the name of its uio device (``uio3``).

    All or nothing. Raises SystemSupportError (no configfs, a module is missing), BusyError (the
    name is in use) and PermissionNeededError.
    """
    if size <= 0 or size % BLOCK_SIZE:
        raise ValueError(f"no size of a disk: {size}")
    _check_root()
    # An HBA that exists fails here: what is undone below is always ours.
    _require("target_core_user", lambda: make_directory(target.hba))
    try:
        make_directory(target.backstore)
        _configure(target, size, read_only)
        return find_uio(target)
    except BaseException:
        _undo(remove_backstore, target)
        raise


def _configure(target: Target, size: int, read_only: bool) -> None:
    for token in (
        f"dev_config={target.dev_config}",
        f"dev_size={size}",
        f"hw_block_size={BLOCK_SIZE}",
        f"hw_max_sectors={MAX_SECTORS}",
        f"max_data_area_mb={DATA_AREA_MIB}",
        # Whoever switched netlink replies on for the whole module cannot make us wait for them.
        "nl_reply_supported=-1",
    ):
        write_token(target.backstore / "control", token)
    write_token(target.backstore / "wwn" / "vpd_unit_serial", target.serial)
    attributes = target.backstore / "attrib"
    # Never give a command up: the handler may come back. Not to be changed after the export.
    write_token(attributes / "cmd_time_out", "0")
    write_token(attributes / "emulate_write_cache", "0" if read_only else "1")
    write_token(target.backstore / "enable", "1")


def export(target: Target) -> str:
    """Make the loopback target and the disk; its SCSI address (``3:0:1:0``).

    The backstore exists and a handler answers. All or nothing. Raises as ``create_backstore``.
    """
    _check_root()
    _make_fabric(target)
    try:
        make_directory(target.port_group)
        write_token(target.port_group / "nexus", f"naa.{target.wwn}")
        make_directory(target.lun)
        _link(target)
        return address(target)
    except BaseException:
        _undo(unexport, target)
        raise


def _make_fabric(target: Target) -> None:
    fabrics = target.fabric.parent
    with locked(names.ROOT):
        if not fabrics.is_dir():
            _require("tcm_loop", lambda: make_directory(fabrics))
        try:
            make_directory(target.fabric)
        except HybridError:
            _remove_if_empty(fabrics)
            raise


def _link(target: Target) -> None:
    link = target.lun / target.name
    try:
        link.symlink_to(target.backstore)
    except OSError as error:
        raise explain(error, f"cannot export {target.backstore} as a disk") from error


def unexport(target: Target) -> None:
    """Take the disk and its loopback target away, as far as they are there.

    Any number of processes may do it at the same time. Blocks until the commands in flight are
    answered; see ``hybrid.block.teardown`` for a handler that is dead.
    """
    fabrics = target.fabric.parent
    if not fabrics.is_dir():
        return
    remove_link(target.lun / target.name)
    remove_directory(target.lun)
    # The nexus goes with its port group.
    remove_directory(target.port_group)
    with locked(names.ROOT):
        remove_directory(target.fabric)
        _remove_if_empty(fabrics)


def remove_backstore(target: Target) -> None:
    """Take the backstore away, as far as it is there. Its handler then reads EIO from the uio.

    Raises BusyError while it is exported.
    """
    with suppress(HybridError):
        # Whatever was set since then: the removal must not wait for a netlink answer.
        write_token(target.backstore / "attrib" / "nl_reply_supported", "-1")
    remove_directory(target.backstore)
    _remove_if_empty(target.hba)


def block_device(target: Target, blocked: bool) -> None:
    """Let new commands wait at the SCSI layer (BUSY) instead of entering the ring, or no longer.

    Raises NotFoundError if the backstore is gone.
    """
    write_token(target.backstore / "action" / "block_dev", "1" if blocked else "0")


def reset_ring(target: Target, level: int) -> None:
    """Empty the ring. Commands in it are tried again (``level`` 1) or fail (2).

    Raises NotFoundError if the backstore is gone.
    """
    write_token(target.backstore / "action" / "reset_ring", str(level))


def find_uio(target: Target) -> str:
    """The name of the uio device of the backstore, ``uio3``. Raises NotFoundError."""
    for device in names.UIO_CLASS.glob("uio*"):
        if read_value(device / "name") == target.uio_label:
            return device.name
    raise NotFoundError(f"no uio device belongs to {target.backstore}")


def address(target: Target) -> str:
    """Host, channel, target and LUN of the disk: ``3:0:1:0``. Raises NotFoundError."""
    found = read_value(target.port_group / "address")
    if not _ADDRESS.fullmatch(found):
        raise NotFoundError(f"no loopback target {target.port_group}")
    return f"{found}:0"


def list_targets() -> list[Target]:
    """Every target of hybrid in configfs, by id, also one that is half made or half gone.

    A lone HBA without a backstore is not told apart from those of others. Directories of LUNs are
    not looked into: that would wait for the removal of one. It may still block where a removal of
    a backstore hangs, of whomever.
    """
    return [Target(found, wwn_of(found)) for found in sorted({*_backstores(), *_fabrics()})]


def _backstores() -> Iterator[str]:
    for backstore in names.ROOT.glob("core/user_*/hybrid-*"):
        found = backstore.name.removeprefix("hybrid-")
        if names.ID.fullmatch(found) and backstore.parent.name == f"user_{int(found, 16)}":
            yield found


def _fabrics() -> Iterator[str]:
    for fabric in names.ROOT.glob(f"loopback/naa.{names.OWN_WWN}*"):
        found = fabric.name[-names.ID_LENGTH :]
        if names.ID.fullmatch(found) and fabric.name == f"naa.{wwn_of(found)}":
            yield found


def _check_root() -> None:
    if not names.ROOT.is_dir():
        raise SystemSupportError(
            f"the kernel's SCSI target is not there: {names.ROOT} does not exist",
            hint="mount configfs on /sys/kernel/config; `modprobe -a target_core_user tcm_loop`",
        )


def _require(module: str, make: Callable[[], None]) -> None:
    """Do the first step that needs ``module``, which the kernel tries to load by itself."""
    try:
        make()
    except HybridError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
            raise SystemSupportError(
                f"the kernel module {module} is missing",
                hint=f"`modprobe {module}`; it comes with the package of the kernel's modules",
            ) from error
        raise


def _remove_if_empty(directory: Path) -> None:
    with suppress(BusyError):
        remove_directory(directory)


def _undo(remove: Callable[[Target], None], target: Target) -> None:
    """Clean up after a failure, whose own error is the one to tell."""
    try:
        remove(target)
    except HybridError as error:
        logger.warning("left behind: %s", error)
