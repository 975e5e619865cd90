"""Whole images: read from, written to and moved between registries, OCI layouts and archives.

Contracts      contract    ImageSource, ImageDestination, add_blob
Places         opening     which of them a name means
               registry_image, layout_source, layout_destination, docker_archive
Moving         copy        an image, or an index with some or all of its platforms

Here is nothing that mounts, and nothing that reads single blocks: that is ``hybrid.core``.
"""
