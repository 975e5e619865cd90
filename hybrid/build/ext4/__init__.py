"""An ext4 file system on a virtual disk, changed in user space by the layers of an OCI image.

    layer.py      Ext4Layer: make or open a file system, apply archives, get the changed blocks
    apply.py      one archive: entries, whiteouts, opaque directories, links     (spec: layer-apply)
    paths.py      names of entries: cleaned, and resolved inside the root
    removal.py    taking away trees, but for what this very layer brought
    xattrs.py     which extended attributes ext4 can have                                PURE
    changes.py    Changes: the blocks of a layer, for whoever writes it
    stack.py      LayerStack: what lies below the next layer
    runs.py       lists of byte ranges                                                   PURE
    native.py     the compiled part (native/ext4, over libext2fs), and its errors

    LayerStack  --read-->  Ext4Layer  <--entries--  TarReader
        ^                     |
        +------ Changes ------+-->  LSMT layer (by the caller)

The same archive on the same disk gives the same blocks, on every machine: no clock, no random
numbers, no order of a hash table gets into them. No function here is async: a layer is one thread's
work, which lets the others run (the GIL is released) while blocks are copied.
"""
