"""Mounts: where a Device, a front end and the kernel's file systems meet.

    attach     start the server, mount, record             runs in `hybrid mount`
    server     serve one Device until nobody needs it       the forked process, one per mount
    detach     take a mount away, also under a dead server  runs in `hybrid umount`
    listing    what is mounted and how it is                runs in `hybrid list`

Below them: ``state`` (records on disk), ``control`` (the server's socket), ``kernel`` (loop device
and mount(2)), ``preflight`` (what can be refused before anything is started), ``filesystems``,
``holders``, ``mountinfo``, ``processes``, ``bounded``, ``syscalls``.

How a mount ends. The loop device has autoclear set, so the kernel drops it together with the
mounted file system, whoever unmounts that, and closes the FUSE file under it. The server counts
the open handles of that file: when the last one goes, it takes its own FUSE mount and its state
directory away and ends. ``hybrid umount`` therefore only unmounts and waits. It does the rest
itself, by force, if the server is dead, stopped or silent. So a plain umount(8) leaves nothing
behind, and a lazy one cleans up when the last user of the tree is gone.

``hybrid umount`` and ``hybrid list`` touch neither the mounted tree nor the FUSE mount: the answer
might have to come from a server that is dead or stopped. They read /proc, /sys and the records.
"""
