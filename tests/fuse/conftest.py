from support.mounting import bench, images

__all__ = ["bench", "images"]
