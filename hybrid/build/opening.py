"""Names become sources and destinations. What is opened is closed with the caller's stack."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from hybrid.build.contract import ImageDestination, ImageSource
from hybrid.build.layout_destination import LayoutDestination
from hybrid.build.layout_source import LayoutSource
from hybrid.config import GlobalConfig
from hybrid.core.reference import (
    ArchiveReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from hybrid.errors import UsageError

if TYPE_CHECKING:
    from hybrid.core.registry import Registry


async def open_image_source(
    name: str, config: GlobalConfig, stack: AsyncExitStack, *, insecure: bool = False
) -> ImageSource:
    """The image to read. ``insecure``: its registry may have plain HTTP or unverified TLS.

    Raises UsageError for what names no image, and what opening an archive or layout raises; a
    registry is asked only when something is read.
    """
    ref = parse_image(name)
    source: ImageSource
    if isinstance(ref, RegistryReference):
        from hybrid.build.registry_image import RegistryImageSource

        source = RegistryImageSource(await open_registry(config, stack, ref, insecure), ref)
    elif isinstance(ref, LayoutReference):
        source = LayoutSource(ref)
    elif isinstance(ref, ArchiveReference):
        from hybrid.build.docker_archive import DockerArchiveSource

        source = await DockerArchiveSource.open(ref)
    else:
        raise not_an_image(ref)
    stack.push_async_callback(source.aclose)
    return source


async def open_image_destination(
    name: str, config: GlobalConfig, stack: AsyncExitStack, *, insecure: bool = False
) -> ImageDestination:
    """Where an image goes: a registry or an OCI layout. Raises UsageError for all else."""
    ref = parse_image(name)
    destination: ImageDestination
    if isinstance(ref, RegistryReference):
        from hybrid.build.registry_image import RegistryImageDestination

        registry = await open_registry(config, stack, ref, insecure)
        destination = RegistryImageDestination(registry, ref, config.cache_dir / "uploads")
    elif isinstance(ref, LayoutReference):
        destination = LayoutDestination(ref)
    elif isinstance(ref, ArchiveReference):
        raise UsageError(
            f"{ref}: docker archives can only be read", hint="write to oci:DIR, or to a registry"
        )
    else:
        raise not_an_image(ref)
    stack.push_async_callback(destination.aclose)
    return destination


async def open_registry(
    config: GlobalConfig, stack: AsyncExitStack, ref: RegistryReference, insecure: bool
) -> Registry:
    """Connections with the logins and settings of the configuration."""
    # The HTTP client takes 70 ms to import; images on disk do without it.
    from hybrid.core.credentials import Credentials
    from hybrid.core.registry import Registry
    from hybrid.core.remote import settings_of

    settings = settings_of(config, ref.api_host if insecure else "")
    return await stack.enter_async_context(Registry(settings, Credentials(config.credentials)))


def not_an_image(ref: ImageReference) -> UsageError:
    """A config.v1.json names layers, but has no manifest that could be copied."""
    return UsageError(
        f"{ref} is an image config, which cannot be copied",
        hint="name an image in a registry, oci:DIR[:TAG] or docker-archive:FILE[:TAG]",
    )
