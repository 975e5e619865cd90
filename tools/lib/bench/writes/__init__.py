"""Writing to an image: FUSE + loop (and TCMU, where the kernel has it) against a raw file.

    python -m bench.writes [--quick] [--json] [--directory DIR]

fio      runs of fio that write                      targets  what is written to
speed    rates, interleaved                          space    bytes on disk for a byte written
index    memory of the index of an upper             table    aims, and the table
"""
