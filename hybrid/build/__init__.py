"""Whole images: read, written, moved, committed and converted.

Contracts      contract            ImageSource, ImageDestination, add_blob
Names          opening             which source or destination a name means
Registries     registry_image      both; spool keeps what can be read only once
Layouts        layout_source       and layout_destination, with blob_file and layout_index (PURE)
Archives       docker_archive      of ``docker save``, above archive_file
Moving         copy                an image, or an index with what selection (PURE) takes of it
Layers         compact             of several one, by blob_writer; commit and commit_image use it
Archives       tar/                the members of a layer of a plain OCI image
File systems   ext4/               ext4 written in user space, and archives applied to it
               erofs/              erofs written in user space, from the same archives
Converting     convert/            plain images become overlaybd images

Here is nothing that mounts, and nothing that reads single blocks: that is ``hybrid.core``.
"""
