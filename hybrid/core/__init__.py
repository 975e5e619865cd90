"""The shared core: from blobs in a registry to one virtual disk.

    device      the contracts Source and Device
    reference   PURE: image names                manifest   PURE: OCI manifests and annotations
    tarball     PURE: the one-member tar wrapper
    zfile       PURE: seekable compression       lsmt       PURE: the layer format and the merge
    source      local and memory Sources, fault injection
    credentials where user names and passwords come from
    registry    OCI distribution client          layout     OCI image layout on disk
    cache       persistent block cache shared by processes
    layer       blob -> layer                    image      layers -> Device
"""
