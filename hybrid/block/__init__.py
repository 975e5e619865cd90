"""The TCMU front end: a Device as a SCSI disk of the kernel. Knows Devices, never images.

names, configfs, teardown   the kernel's side: backstore, loopback target, disk; and away again
arrival, netlink            the disk that appears; the kernel's events
uio, ring                   the memory that is shared with the kernel (ring: pure)
scsi, scsi_*, sense         commands and answers (pure)
server, commands, failures  joins a ring with a Device
"""
