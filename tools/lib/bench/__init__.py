"""The benchmark: one table from one run. See docs/benchmarks.md for how to read it.

data       the disk and the layers that are read         targets   what fio reads, and its server
fio        one run of fio                                measure   all runs, interleaved; medians
small      start-up times, index memory                  table     aims, and the table
profiles   where the time goes when an aim is missed     server    an in-memory Device behind FUSE
"""
