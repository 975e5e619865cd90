"""Plain OCI images become overlaybd images. Spec: convertor, image-format, layer-apply.

    convert.py      one image or an index of several, and the name last
    one_image.py    the layers of one image, in order: what is reused, what is converted
    planning.py     what is to be converted: manifest and config, checked                    PURE
    options.py      what the result depends on; keys and uuids that follow from it           PURE
    result.py       manifest, config and index of the result                                 PURE
    fetching.py     source layers, a little ahead of their use
    feed.py         compressed bytes on their way from a download to a thread
    pipe.py         bytes on their way from one thread to another
    expanding.py    decompression and diff_id
    ext4_steps.py   one archive applied over the disk of the layers below
    erofs_steps.py  all archives applied to one tree, which becomes an erofs (build/erofs)
    layer_blob.py   changed blocks become a blob
    storing.py      a blob on its way to the destination
    reuse.py        layers that need no work
    lower.py        layers that were converted earlier, as the disk below
    memory.py       which layers were converted earlier, and where they are (SQLite)
    cores.py        how many of the threads work at a time; shares.py: at what
    run.py          what all images of one conversion share

    download -> Feed -> decompress, hash -> Pipe -> apply -> Changes -> pack, hash -> upload
    (trio)              (thread)                    (thread)            (thread)      (trio)

A blob on this machine is read by the thread that expands it, and one for a layout is written where
it stays. Layers are applied one after the other. While one is, the layer below is packed and sent,
and those above are fetched. A layer counts for nothing before its digest and its diff_id were seen
to be right; the blob made of it is stored before the name of the image, which comes last.
"""
