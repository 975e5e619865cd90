"""The benchmark: one table from one run. See docs/benchmarks.md for how to read it.

data       the disk and the layers that are read         targets   what fio reads, and its server
fio        one run of fio                                measure   all runs, interleaved; medians
small      start-up times, index memory                  table     aims, and the table
profiles   where the time goes when an aim is missed     devices   Devices that cost nothing
fronts     a Device behind FUSE or TCMU                  server    the process that serves it
images     `hybrid mount` of an image                    guest     this program again, in tools/vm
modes      the other benchmark: both modes side by side
"""
