"""A random exerciser of writable mounts, as fsx is one of file systems.

    python -m exercise [--seed N] [--seconds S | --operations N] [--mode fuse|tcmu]

model    what the file must hold             image    the image, its mount, its end
file     operations on the file              run      what happens next, and what is compared
"""
