"""Configuration files, read and checked: what they mean, never what is done with it.

    strict_json   JSON with one meaning only
    rows          one row per setting, and JSON objects checked against such rows
    settings      the rows of the global configuration (``hybrid.json``, ``overlaybd.json``)
    global_config the global configuration           image_config  ``config.v1.json`` of one image

Keys, types and defaults are listed in docs/configuration.md, which a test holds to the rows.
"""

from hybrid.config.global_config import (
    CredentialConfig,
    GlobalConfig,
    RegistryHost,
    load_global_config,
)
from hybrid.config.image_config import (
    ImageConfig,
    LowerConfig,
    UpperConfig,
    load_image_config,
    local_layer_path,
    local_layer_paths,
)

__all__ = [
    "CredentialConfig",
    "GlobalConfig",
    "ImageConfig",
    "LowerConfig",
    "RegistryHost",
    "UpperConfig",
    "load_global_config",
    "load_image_config",
    "local_layer_path",
    "local_layer_paths",
]
