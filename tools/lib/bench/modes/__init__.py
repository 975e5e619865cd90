"""Both modes side by side: the same Devices through TCMU and through FUSE, and what kernels can do.

    python -m bench.modes [--quick] [--json | --profile]     where the kernel has TCMU

ramdisk   the ceiling: a ramdisk of the kernel's SCSI target    targets   all that is read
measure   runs of fio, interleaved                              table     aims, and the table
profiles  where the time goes
"""
