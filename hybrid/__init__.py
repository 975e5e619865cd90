"""hybrid: overlaybd container images as block devices, for every Linux machine.

The layer map (imports go downwards only; import-linter holds it in the tests):

    cli       one module per verb
    mount     choose a mode, attach, record, detach: where front ends and images meet
    fuse      one FUSE file per image, loop devices         block   TCMU (to come)
    core      formats, sources, cache, registry, merged image
    config    image and global configuration
    errors    the exception tree and its exit codes
"""

__version__ = "0.1.0"
