"""Layers of an open disk as the Content of a blob."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.build.compact import LayerPlan
from hybrid.build.convert.cores import Cores
from hybrid.build.convert.lower import LowerDisk
from hybrid.build.ext4.changes import Extent
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice


class PlannedLayer:
    """What ``plan_layer`` has found that a layer is to hold. For threads, as LowerDisk."""

    def __init__(self, disk: LayeredDevice, plan: LayerPlan, cores: Cores) -> None:
        self.size = plan.virtual_size
        self._disk = LowerDisk(disk, cores)
        found = [Extent(start * SECTOR, (end - start) * SECTOR, False) for start, end in plan.data]
        found += [Extent(start * SECTOR, (end - start) * SECTOR, True) for start, end in plan.zeros]
        self.extents: Sequence[Extent] = sorted(found)

    def read(self, offset: int, length: int) -> bytes:
        """Raises what reading the disk raises."""
        found = self._disk.read(offset, length)
        return found if isinstance(found, bytes) else bytes(found)
