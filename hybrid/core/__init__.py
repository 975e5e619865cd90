"""The shared core: from blobs in a registry to one virtual disk.

Contracts          device      Source (bytes of a blob) and Device (bytes of a disk)
Names, PURE        reference   image names            manifest    manifests and annotations
                   platforms   which manifest fits    recognize   layers without annotations
                   json_fields checked JSON
Codecs, PURE       tarball     the one-member tar wrapper
                   zfile       seekable compression   lsmt        the layer format and the merge
Sources            source      file, memory, faults   cache       persistent, shared by processes
                   registry    OCI distribution       layout      OCI image layout on disk
Whole blobs        byte_stream streams, verified      download    a blob of a registry as a stream
                   push        to a registry: upload, upload_bodies, push_session,
                               push_errors, request_body
Behind registry    fetch, auth, challenge, redirect, retry, byte_range, transport, tls, origins,
                   proxies, hosts, http_errors, connection_errors, registry_settings;
                   credentials, credential_service, credential_helper
Behind cache       cacheblob, cachefile, cacheformat (PURE)
From blob to disk  stream      plain or expanded      opening     blob -> layer, by its tail
                   layer       an open layer          disk        layers -> Device
                   remote      registry and cache, set up by the configuration
                   image       image name -> Device
Results            output_file a file that appears whole or not at all
                   units       sizes for people, PURE
"""
