"""Images made from OCI images: layers are read, applied to a file system, and written."""
