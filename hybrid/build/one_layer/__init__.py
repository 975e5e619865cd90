"""Images of one layer, made of a directory or of a tar file: what ``hybrid build`` converts.

    tree.py     a directory as an archive
    layers.py   what the layer is made of: a directory, or an archive in a file
    config.py   what the config of the image says                                     PURE
    source.py   OneLayerSource: an ImageSource, so that build/convert does the rest

The names of all that a conversion makes follow from the digest of the archive, and what was
converted before is not converted again: so the digest is needed before the first byte is applied.
Therefore all is read twice, first for the digest alone. An archive of a directory is never stored:
that would take as much space again, and be for nothing when it turns out that nothing has changed.
What changes between the two readings is found by the digest, which the second one checks.
"""
