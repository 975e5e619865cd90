"""The image config ``config.v1.json``: which layers, local or remote, make one image.

Spec: image-config 1 and 3. Relative paths start at the directory of the config file. Unknown keys
are only mentioned in the debug log, since the tools that write this file put private ones there.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.config.rows import (
    Kind,
    Setting,
    Values,
    check_object,
    read_json_object,
    refuse,
    require_kind,
)
from hybrid.config.settings import DOWNLOAD_ROWS
from hybrid.errors import ConfigError

logger = logging.getLogger("hybrid.config")

MAX_LOWERS = 255
"""Tags of layers are one byte, and one value is taken (spec: lsmt, limits)."""
COMMIT_NAMES = ("overlaybd.commit", ".commit", "overlaybd.sealed")
"""Names of a finished layer in its directory, the first that exists counts."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

IMAGE_ROWS = (
    Setting(
        "repoBlobUrl",
        Kind.STRING,
        "",
        "Where remote layers are: `https://HOST/v2/REPOSITORY/blobs`.",
    ),
    Setting("lowers", Kind.ARRAY, None, "The layers, bottom first; at most 255."),
    Setting("upper", Kind.OBJECT, None, "The writable layer."),
    Setting(
        "resultFile", Kind.STRING, "", "File for the outcome of opening; empty: it is not written."
    ),
    Setting(
        "accelerationLayer", Kind.BOOLEAN, False, "The last lower is a trace and holds no data."
    ),
    Setting("recordTracePath", Kind.STRING, "", "Trace to record or to replay."),
    *DOWNLOAD_ROWS,
)

LOWER_ROWS = (
    Setting("file", Kind.STRING, "", "Local layer file, tried first."),
    Setting(
        "dir",
        Kind.STRING,
        "",
        "Layer directory: `overlaybd.commit`, `.commit`, `overlaybd.sealed` are tried in it.",
    ),
    Setting("digest", Kind.STRING, "", "`sha256:...` of the blob below `repoBlobUrl`."),
    Setting("size", Kind.INTEGER, 0, "Its length in bytes; 0: not known.", minimum=0),
    Setting("targetFile", Kind.STRING, "", "TurboOCI: local tar with the data."),
    Setting("targetDigest", Kind.STRING, "", "TurboOCI: blob with the data."),
    Setting("gzipIndex", Kind.STRING, "", "TurboOCI: index of a compressed tar."),
)
"""Keys of ``lowers[N]``."""

UPPER_ROWS = (
    Setting("index", Kind.STRING, "", "Index file of the writable layer."),
    Setting("data", Kind.STRING, "", "Data file of the writable layer."),
    Setting("target", Kind.STRING, "", "TurboOCI: local tar."),
    Setting("gzipIndex", Kind.STRING, "", "TurboOCI: index of a compressed tar."),
)
"""Keys of ``upper``."""


@dataclass(frozen=True, slots=True)
class LowerConfig:
    """One read-only layer: local (``file``, ``directory``), remote (``digest``), or either."""

    file: Path | None = None
    directory: Path | None = None
    digest: str = ""
    size: int = 0
    """Bytes of the blob; 0: not known."""
    target_file: Path | None = None
    target_digest: str = ""
    gzip_index: Path | None = None

    @property
    def is_turbo(self) -> bool:
        """A TurboOCI layer: its data is in another file or blob."""
        return self.target_file is not None or bool(self.target_digest)


@dataclass(frozen=True, slots=True)
class UpperConfig:
    """The writable layer."""

    index: Path
    data: Path
    target: Path | None = None
    gzip_index: Path | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A stack of layers. Paths are absolute."""

    file: Path
    repo_blob_url: str
    lowers: tuple[LowerConfig, ...]
    """Bottom first, with the trace on top if ``acceleration_layer``."""
    upper: UpperConfig | None
    result_file: Path | None
    acceleration_layer: bool
    record_trace_path: Path | None

    @property
    def data_lowers(self) -> tuple[LowerConfig, ...]:
        """The lowers that hold data."""
        return self.lowers[:-1] if self.acceleration_layer else self.lowers


def load_image_config(path: Path) -> ImageConfig:
    """Read and check an image config.

    Raises NotFoundError (no such file), PermissionNeededError, or ConfigError naming the key.
    """
    found = check_object(path, read_json_object(path), IMAGE_ROWS, warn_unknown=False)
    values = Values(path, IMAGE_ROWS, found)
    if values.flag("download.enable"):
        logger.info("%s: download.enable: layers are not downloaded in the background yet", path)
    config = ImageConfig(
        file=path,
        repo_blob_url=values.text("repoBlobUrl"),
        lowers=_lowers(path, found.get("lowers", [])),
        upper=_upper(path, values.mapping("upper")),
        result_file=values.path("resultFile"),
        acceleration_layer=values.flag("accelerationLayer"),
        record_trace_path=values.path("recordTracePath"),
    )
    _check_stack(config)
    return config


def local_layer_paths(lower: LowerConfig) -> list[Path]:
    """Where the local file of a layer may be, best first (spec: image-config 3.1).

    Without a directory nothing is looked for in one.
    """
    candidates = [] if lower.file is None else [lower.file]
    if lower.directory is not None:
        candidates += [lower.directory / name for name in COMMIT_NAMES]
    return candidates


def local_layer_path(lower: LowerConfig) -> Path | None:
    """The first of these paths that exists. None: the layer must come from the registry."""
    return next((path for path in local_layer_paths(lower) if os.access(path, os.F_OK)), None)


def _check_stack(config: ImageConfig) -> None:
    file = config.file
    if not config.data_lowers and config.upper is None:
        raise ConfigError(f"{file}: the image has no layers", hint="lowers or upper must name one")
    if len(config.lowers) > MAX_LOWERS:
        raise ConfigError(
            f"{file}: lowers: {len(config.lowers)} layers", hint=f"at most {MAX_LOWERS} are allowed"
        )
    if config.acceleration_layer and config.record_trace_path is not None:
        refuse(file, "recordTracePath", "not allowed together with accelerationLayer")
    for number, lower in enumerate(config.lowers):
        if lower.file is None and lower.directory is None and not config.repo_blob_url:
            refuse(file, f"lowers[{number}]", "it has only a digest, and repoBlobUrl is empty")


def _lowers(file: Path, items: list[Any]) -> tuple[LowerConfig, ...]:
    return tuple(_lower(file, f"lowers[{number}]", item) for number, item in enumerate(items))


def _lower(file: Path, key: str, item: Any) -> LowerConfig:
    require_kind(file, key, item, Kind.OBJECT)
    found = check_object(file, item, LOWER_ROWS, place=f"{key}.", warn_unknown=False)
    values = Values(file, LOWER_ROWS, found, place=f"{key}.")
    for name in ("digest", "targetDigest"):
        text = values.text(name)
        if text and _DIGEST.fullmatch(text) is None:
            hint = "sha256: and 64 digits 0-9 a-f"
            values.refuse(name, f"{text!r} is no sha256 digest", hint)
    lower = LowerConfig(
        file=values.path("file"),
        directory=values.path("dir"),
        digest=values.text("digest"),
        size=values.integer("size"),
        target_file=values.path("targetFile"),
        target_digest=values.text("targetDigest"),
        gzip_index=values.path("gzipIndex"),
    )
    if lower.file is None and lower.directory is None and not lower.digest:
        refuse(file, key, "it has neither file nor dir nor digest")
    return lower


def _upper(file: Path, item: dict[str, Any]) -> UpperConfig | None:
    found = check_object(file, item, UPPER_ROWS, place="upper.", warn_unknown=False)
    values = Values(file, UPPER_ROWS, found, place="upper.")
    index, data = values.path("index"), values.path("data")
    if index is not None and data is not None:
        return UpperConfig(index, data, values.path("target"), values.path("gzipIndex"))
    if index is not None or data is not None:
        # overlaybd opens such an image read-only: without what was written to it.
        refuse(file, "upper", "it needs both index and data")
    return None
