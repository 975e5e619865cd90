from support.mounting import bench, images
from support.tcmu_bench import kernel_log, tcmu

__all__ = ["bench", "images", "kernel_log", "tcmu"]
