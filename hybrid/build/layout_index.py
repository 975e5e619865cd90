"""The ``index.json`` of an OCI layout with one entry changed. PURE. OCI image-layout 1.1."""

from __future__ import annotations

import json
from typing import Any

from hybrid.core.json_fields import Fields, parse_json_object
from hybrid.core.layout import REF_NAME
from hybrid.core.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT_BYTES
from hybrid.core.platforms import Platform
from hybrid.core.reference import ManifestBlob
from hybrid.errors import FormatError

EMPTY: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": []}


def new_entry(manifest: ManifestBlob, tag: str, platform: Platform | None) -> dict[str, Any]:
    """The entry for a manifest, under a tag or ("") none."""
    entry: dict[str, Any] = {
        "mediaType": manifest.media_type or MANIFEST_TYPES[0],
        "digest": manifest.digest,
        "size": len(manifest.data),
    }
    if platform is not None:
        entry["platform"] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            entry["platform"]["variant"] = platform.variant
    if tag:
        entry["annotations"] = {REF_NAME: tag}
    return entry


def with_entry(data: bytes | None, entry: dict[str, Any], where: str) -> bytes:
    """The index with ``entry`` in place of what had its tag; without a tag: of its digest.

    Everything else stays as it was. ``data`` None: there was no index. Raises FormatError, also if
    the index would become too long to be read again.
    """
    document = EMPTY if data is None else parse_json_object(data, where)
    old = document.get("manifests") or []
    if not isinstance(old, list) or not all(isinstance(item, dict) for item in old):
        raise FormatError(f"{where}: field manifests is no array of objects")
    kept = [item for item in old if not is_replaced(item, entry)]
    # What stays must be readable, or nobody could read what was added.
    list(Fields({"manifests": kept}, where).nested_list("manifests"))
    result = json.dumps(document | {"manifests": [*kept, entry]}, indent=2).encode()
    if len(result) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{where} would become longer than {MAX_DOCUMENT_BYTES} bytes")
    return result


def is_replaced(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether an entry makes way for the new one."""
    old_tag, new_tag = tag_of(old), tag_of(new)
    return old_tag == new_tag if new_tag else not old_tag and old.get("digest") == new["digest"]


def tag_of(entry: dict[str, Any]) -> str:
    """The tag of an entry, "" if it has none."""
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else ""
