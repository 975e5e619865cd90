"""The FUSE front end: a Device as one file, and the loop device over it."""

DISK_NAME = "disk"
"""Name of the one file in the FUSE directory."""
