"""A file system that the kernel has mounted on an attached disk, changed by the layers of an image.

    tree.py    KernelTree: what archives need, by system calls    (build/ext4/apply uses it)
    make.py    empty file systems: xfs and btrfs by their own programs

What the kernel writes is not the same twice: it has a clock, and numbers of its own.
"""
