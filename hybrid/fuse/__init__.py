"""The FUSE front end: a Device as one file, and the loop device over it."""
