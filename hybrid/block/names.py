"""The names of one TCMU disk in configfs, and of the places below which the kernel keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/kernel/config/target")
UIO_CLASS = Path("/sys/class/uio")
PARAMETERS = Path("/sys/module/target_core_user/parameters")
"""Switches of the whole kernel module, for all TCMU programs of the machine."""

ID_LENGTH = 8
ID = re.compile(r"[0-9a-f]{8}")
WWN = re.compile(r"3[0-9a-f]{15}")
OWN_WWN = "3687962"
"""Locally assigned NAA (3), then "hyb": tells a loopback target of ours without looking into it."""


def wwn_of(target_id: str) -> str:
    """The world wide name that belongs to an id: 16 hex digits, NAA 3."""
    return f"{OWN_WWN}0{target_id}"


@dataclass(frozen=True)
class Target:
    """The names of one TCMU disk. Nothing of it need exist."""

    id: str
    """8 hex digits, the id of the mount."""
    wwn: str
    """16 hex digits, the first is 3: NAA, locally assigned."""

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.id) or not WWN.fullmatch(self.wwn):
            raise ValueError(f"no id and WWN of a target: {self.id!r}, {self.wwn!r}")

    @property
    def number(self) -> int:
        """The host number of the HBA, 32 bits."""
        return int(self.id, 16)

    @property
    def name(self) -> str:
        return f"hybrid-{self.id}"

    @property
    def dev_config(self) -> str:
        """Tells other handlers that the device is ours: ``hybrid`` is the subtype."""
        return f"hybrid/{self.id}"

    @property
    def serial(self) -> str:
        """The unit serial number: unique, and the same over restarts."""
        return self.wwn

    @property
    def uio_label(self) -> str:
        """What /sys/class/uio/*/name and the netlink events call the device."""
        return f"tcm-user/{self.number}/{self.name}/{self.dev_config}"

    @property
    def hba(self) -> Path:
        return ROOT / "core" / f"user_{self.number}"

    @property
    def backstore(self) -> Path:
        return self.hba / self.name

    @property
    def fabric(self) -> Path:
        return ROOT / "loopback" / f"naa.{self.wwn}"

    @property
    def port_group(self) -> Path:
        return self.fabric / "tpgt_1"

    @property
    def lun(self) -> Path:
        return self.port_group / "lun" / "lun_0"
