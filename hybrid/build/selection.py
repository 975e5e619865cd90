"""Which platforms of an image are wanted, and the index that holds just those. PURE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.build.contract import manifest_blob
from hybrid.core.json_fields import parse_json_object
from hybrid.core.manifest import INDEX_TYPES, Descriptor, Index
from hybrid.core.platforms import Platform, host_platform, parse_platform
from hybrid.core.reference import ManifestBlob
from hybrid.errors import UsageError

ALL = "all"


@dataclass(frozen=True)
class Selection:
    """``platforms`` empty: all there are, and attestations too."""

    platforms: tuple[Platform, ...] = ()

    @property
    def only(self) -> Platform | None:
        """The one platform that is wanted; None if it is all or several."""
        return self.platforms[0] if len(self.platforms) == 1 else None


EVERYTHING = Selection()


def parse_selection(texts: Sequence[str], machine: str) -> Selection:
    """What ``--platform`` says, which may be repeated; without it: that of ``machine``.

    ``machine`` is as ``platform.machine()`` calls it. Raises UsageError.
    """
    if not texts:
        return Selection((host_platform(machine),))
    if ALL in texts:
        if len(texts) > 1:
            raise UsageError("--platform all leaves no room for another --platform")
        return EVERYTHING
    return Selection(tuple(dict.fromkeys(parse_platform(text) for text in texts)))


def index_of_some(index: Index, data: bytes, entries: Sequence[Descriptor]) -> ManifestBlob:
    """An index of some of the entries of another, each as it stands there.

    ``data`` is the other index. The same choice gives the same bytes.
    """
    document = parse_json_object(data, f"index {index.digest}")
    digests = {entry.digest for entry in entries}
    platforms = {(entry.digest, entry.platform) for entry in entries}
    kept = []
    for entry, raw in zip(index.entries, document["manifests"], strict=True):
        if entry.digest in digests and (entry.digest, entry.platform) in platforms:
            kept.append(raw)
    some = json.dumps(document | {"manifests": kept}, separators=(",", ":")).encode()
    return manifest_blob(some, index.media_type or INDEX_TYPES[0])
