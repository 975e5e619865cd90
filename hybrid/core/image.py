"""An image name becomes a Device: its layers are found, opened in parallel, and merged."""

from __future__ import annotations

import logging
import platform
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from hybrid.config import (
    GlobalConfig,
    ImageConfig,
    LowerConfig,
    UpperConfig,
    load_image_config,
    local_layer_path,
    local_layer_paths,
)
from hybrid.core.device import Source
from hybrid.core.disk import LayeredDevice, first_error
from hybrid.core.layer import Layer
from hybrid.core.layout import OciLayout
from hybrid.core.manifest import (
    Manifest,
    has_overlaybd_annotations,
    overlaybd_layers,
    parse_document,
    plain_image,
    select_platform,
)
from hybrid.core.opening import open_layer
from hybrid.core.pair import open_pair
from hybrid.core.platforms import Platform, host_platform, parse_platform
from hybrid.core.recognize import RECOGNIZE_BYTES, unannotated_image
from hybrid.core.reference import (
    ArchiveReference,
    ConfigReference,
    LayoutReference,
    ManifestBlob,
    RegistryReference,
    parse_blob_url,
    parse_image,
)
from hybrid.core.source import FileSource
from hybrid.errors import (
    ConfigError,
    FormatError,
    NotFoundError,
    PermissionNeededError,
    SystemSupportError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from hybrid.core.remote import RemoteBlobs

logger = logging.getLogger("hybrid.core")

MAX_NESTED_INDEXES = 4
_PARALLEL_OPENS = 32


@dataclass(frozen=True)
class ImageRequest:
    """What to open. ``platform`` is ``OS/ARCHITECTURE[/VARIANT]``; "" means this machine's."""

    image: str
    config: GlobalConfig
    platform: str = ""
    without_upper: bool = False
    """Of a config file with a writable layer: open what is below that."""
    insecure: bool = False
    """Do not verify the certificate of this image's registry, and allow plain HTTP."""

    def wanted_platform(self) -> Platform:
        if self.platform:
            return parse_platform(self.platform)
        return host_platform(platform.machine())


@dataclass(frozen=True)
class BlobPlan:
    """One layer that an image is made of, before it is opened."""

    name: str
    """Digest or path."""
    open: Callable[[], Awaitable[Source]]
    """For a layer in one blob."""
    open_pair: Callable[[], Layer] | None = None
    """For a writable layer, which has two files."""
    media_type: str = ""
    fs_type: str = ""


@dataclass(frozen=True)
class ImagePlan:
    """What an image name stands for: which blobs, bottom first, and where they are."""

    name: str
    digest: str
    """Of the manifest; "" for a config file."""
    layers: tuple[BlobPlan, ...]
    media_type: str = ""
    config_digest: str = ""
    remote: RemoteBlobs | None = field(default=None, repr=False)


class Image(LayeredDevice):
    """An open image. Closing it closes its layers and connections."""

    def __init__(self, plan: ImagePlan, layers: list[Layer]) -> None:
        super().__init__(layers, plan.name)
        self.plan = plan
        self.digest = plan.digest
        self._stack = AsyncExitStack()

    def push(self, layer: Layer) -> None:
        super().push(layer)
        self._stack.push_async_callback(layer.aclose)

    def closes(self, stack: AsyncExitStack) -> None:
        """From now on, closing the image closes what is on this stack (sources, connections)."""
        self._stack = stack

    def stats(self) -> dict[str, int]:
        """As LayeredDevice, with ``bytes_fetched`` (from the registry) and ``requests``."""
        counters = super().stats() | {"bytes_fetched": 0, "requests": 0}
        for layer in self.layers:
            counters["bytes_fetched"] += getattr(layer.source, "bytes_fetched", 0)
        if self.plan.remote is not None:
            counters["requests"] = self.plan.remote.registry.stats["requests"]
        return counters

    def describe(self) -> dict[str, Any]:
        """What the image is made of, for ``hybrid inspect``. Sizes in bytes."""
        return {
            "image": self.name,
            "digest": self.digest or None,
            "media_type": self.plan.media_type or None,
            "config_digest": self.plan.config_digest or None,
            "virtual_size": self.size,
            "segments": len(self.segments),
            "bytes_total": sum(layer.source.size for layer in self.layers),
            "layers": [
                _describe_layer(plan, layer)
                for plan, layer in zip(self.plan.layers, self.layers, strict=True)
            ],
        }

    async def aclose(self) -> None:
        await self._stack.aclose()


async def open_image(request: ImageRequest) -> Image:
    """Resolve a name and open all its layers, each with one read of its tail.

    Raises every kind of HybridError that names, registries, configs and formats have.
    """
    async with AsyncExitStack() as stack:
        plan = await resolve_image(request, stack)
        layers = await _open_layers(plan, stack)
        image = Image(plan, layers)
        image.closes(stack.pop_all())
    return image


async def resolve_image(request: ImageRequest, stack: AsyncExitStack) -> ImagePlan:
    """Find out which blobs an image has. What the plan needs is closed with the stack."""
    reference = parse_image(request.image)
    wanted = request.wanted_platform()
    if isinstance(reference, ConfigReference):
        return await _resolve_config(request, reference.path, stack)
    if isinstance(reference, LayoutReference):
        return await _resolve_layout(reference, wanted)
    if isinstance(reference, ArchiveReference):
        raise plain_image(str(reference))
    return await _resolve_registry(request, reference, wanted, stack)


async def _resolve_registry(
    request: ImageRequest, ref: RegistryReference, wanted: Platform, stack: AsyncExitStack
) -> ImagePlan:
    remote = await _open_remote(request, ref, stack)

    async def fetch(digest: str | None) -> ManifestBlob:
        return await remote.registry.get_manifest(ref, digest)

    manifest = await _find_manifest(fetch, wanted)
    return await _plan(manifest, str(ref), remote.source, remote)


async def _resolve_layout(ref: LayoutReference, wanted: Platform) -> ImagePlan:
    layout = OciLayout(ref.directory)

    async def fetch(digest: str | None) -> ManifestBlob:
        return layout.resolve(digest or ref.tag, wanted)

    async def source(digest: str, size: int) -> Source:
        return layout.blob_source(digest, size)

    manifest = await _find_manifest(fetch, wanted)
    return await _plan(manifest, str(ref), source, None)


async def _find_manifest(
    fetch: Callable[[str | None], Awaitable[ManifestBlob]], wanted: Platform
) -> Manifest:
    """The manifest for a platform, through an index, or indexes in an index."""
    document = parse_document(await fetch(None))
    for _ in range(MAX_NESTED_INDEXES):
        if isinstance(document, Manifest):
            return document
        document = parse_document(await fetch(select_platform(document, wanted).digest))
    if isinstance(document, Manifest):
        return document
    raise FormatError(f"index {document.digest}: more than {MAX_NESTED_INDEXES} nested indexes")


async def _plan(
    manifest: Manifest,
    name: str,
    source: Callable[[str, int], Awaitable[Source]],
    remote: RemoteBlobs | None,
) -> ImagePlan:
    if manifest.layers and not has_overlaybd_annotations(manifest):
        bottom = manifest.layers[0]
        first_bytes = await _first_bytes(source, bottom.digest, bottom.size) if bottom.size else b""
        raise unannotated_image(name, first_bytes)
    layers = tuple(
        BlobPlan(
            layer.digest,
            _opener(source, layer.digest, layer.size),
            media_type=layer.media_type,
            fs_type=layer.fs_type,
        )
        for layer in overlaybd_layers(manifest, name)
    )
    return ImagePlan(
        name, manifest.digest, layers, manifest.media_type, manifest.config.digest, remote
    )


async def _first_bytes(
    source: Callable[[str, int], Awaitable[Source]], digest: str, size: int
) -> bytes:
    blob = await source(digest, size)
    try:
        return bytes(await blob.pread(0, min(RECOGNIZE_BYTES, size)))
    finally:
        await blob.aclose()


def _opener(
    source: Callable[[str, int], Awaitable[Source]], digest: str, size: int
) -> Callable[[], Awaitable[Source]]:
    return lambda: source(digest, size)


async def _resolve_config(request: ImageRequest, path: Path, stack: AsyncExitStack) -> ImagePlan:
    config = load_image_config(path)
    lowers = config.data_lowers
    upper = None if request.without_upper else config.upper
    if upper is not None and (upper.target or upper.gzip_index):
        raise UnsupportedError(f"{path}: upper: TurboOCI layers are not supported yet")
    if not lowers and upper is None:
        raise UnsupportedError(f"{path} has no layer with data")
    for number, lower in enumerate(lowers):
        if lower.is_turbo:
            raise UnsupportedError(
                f"{path}: lowers[{number}]: TurboOCI layers are not supported yet"
            )
    local: list[FileSource | None] = []
    for number, lower in enumerate(lowers):
        local.append(_open_local(config, number, lower))
        if (file := local[-1]) is not None:
            stack.push_async_callback(file.aclose)
    remote = await _remote_of_config(request, config, stack) if None in local else None
    plans = tuple(
        _lower_plan(config, lower, file, remote) for lower, file in zip(lowers, local, strict=True)
    )
    if upper is not None:
        plans = (*plans, _upper_plan(upper))
    return ImagePlan(str(path), "", plans, remote=remote)


def _open_local(config: ImageConfig, number: int, lower: LowerConfig) -> FileSource | None:
    """The local file of a lower; None: it comes from the registry. Spec: image-config 3.1."""
    path = local_layer_path(lower)
    in_registry = bool(lower.digest and config.repo_blob_url)
    where = f"{config.file}: lowers[{number}]"
    if path is not None:
        try:
            return FileSource(path)
        except (NotFoundError, PermissionNeededError, SystemSupportError) as error:
            if not in_registry:
                raise
            logger.warning("%s: %s; it is read from the registry", where, error.message)
    if in_registry:
        return None
    tried = ", ".join(str(candidate) for candidate in local_layer_paths(lower))
    missing = " and ".join(
        name
        for name, value in (("digest", lower.digest), ("repoBlobUrl", config.repo_blob_url))
        if not value
    )
    raise NotFoundError(
        f"{where}: no such file: {tried}",
        hint=f"to read the layer from a registry, {missing} must be set",
    )


async def _remote_of_config(
    request: ImageRequest, config: ImageConfig, stack: AsyncExitStack
) -> RemoteBlobs:
    try:
        scheme, ref = parse_blob_url(config.repo_blob_url)
    except ConfigError as error:
        raise ConfigError(f"{config.file}: {error.message}", hint=error.hint) from None
    return await _open_remote(request, ref, stack, scheme)


def _lower_plan(
    config: ImageConfig, lower: LowerConfig, file: FileSource | None, remote: RemoteBlobs | None
) -> BlobPlan:
    async def open_blob() -> Source:
        if file is not None:
            return file
        assert remote is not None, f"{config.file} was resolved without a registry"
        return await remote.source(lower.digest, lower.size)

    return BlobPlan(lower.digest if file is None else file.name, open_blob)


def _upper_plan(upper: UpperConfig) -> BlobPlan:
    async def open_blob() -> Source:
        return FileSource(upper.data)

    return BlobPlan(
        str(upper.data), open_blob, lambda: open_pair(upper.data, upper.index, lock=True)
    )


async def _open_remote(
    request: ImageRequest,
    ref: RegistryReference,
    stack: AsyncExitStack,
    scheme: str | None = None,
) -> RemoteBlobs:
    from hybrid.core.remote import open_remote  # 70 ms that images on disk do without

    return await open_remote(request.config, ref, stack, scheme=scheme, insecure=request.insecure)


async def _open_layers(plan: ImagePlan, stack: AsyncExitStack) -> list[Layer]:
    """Open all layers in parallel; the first error ends the others."""
    limit = trio.CapacityLimiter(_PARALLEL_OPENS)
    layers: list[Layer | None] = [None] * len(plan.layers)

    async def open_one(number: int) -> None:
        async with limit:
            layer = await _open_blob(plan.layers[number], stack)
            if isinstance(layer.source, FileSource):
                await layer.check_head()
            layers[number] = layer

    try:
        async with trio.open_nursery() as nursery:
            for number in range(len(layers)):
                nursery.start_soon(open_one, number)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    return [layer for layer in layers if layer is not None]


async def _open_blob(plan: BlobPlan, stack: AsyncExitStack) -> Layer:
    if plan.open_pair is not None:
        layer = plan.open_pair()
        stack.push_async_callback(layer.aclose)
        return layer
    source = await plan.open()
    stack.push_async_callback(source.aclose)
    return await open_layer(source)


def _describe_layer(plan: BlobPlan, layer: Layer) -> dict[str, Any]:
    return {
        "name": plan.name,
        "media_type": plan.media_type or None,
        "fs_type": plan.fs_type or None,
        **layer.describe(),
    }
