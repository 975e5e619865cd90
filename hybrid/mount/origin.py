"""Where the disk of a mount comes from, kept with the mount so that another server can open it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.device import Device
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.reference import (
    ConfigReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from hybrid.errors import NotFoundError
from hybrid.mount.changes import Changes

OpenDevice = Callable[[], Awaitable[Device]]
"""Opens the disk; called once, in the server process, inside its trio run."""

_VARIABLES = (
    "HOME",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "SSL_CERT_FILE",
    "HYBRID_CONFIG",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    *(name for proxy in ("http", "https", "all", "no") for name in (f"{proxy}_proxy",)),
    *(name for proxy in ("HTTP", "HTTPS", "ALL", "NO") for name in (f"{proxy}_PROXY",)),
)
"""What of the environment decides which image is opened, and with what rights."""


@dataclass(frozen=True)
class ImageOrigin:
    """An image by name, with all that was said about it. Paths are absolute."""

    image: str
    platform: str = ""
    insecure: bool = False
    config: str = ""
    """File of the global configuration; "": where it is usually found."""
    writable: bool = False
    upper: str = ""
    """The directory for the changes; "": the upper that the image's config file names."""
    size: int = 0
    """Bytes that the disk shall have at least; 0: as it is."""
    token: str = ""
    """Of the command that makes the upper."""
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_command(
        cls, image: str, platform: str, insecure: bool, config: Path | None
    ) -> ImageOrigin:
        """As ``hybrid mount`` was asked. Raises UsageError for what names no image.

        It is read-only; see ``written_to``.
        """
        reference = parse_image(image)
        if isinstance(reference, ConfigReference):
            reference = replace(reference, path=_absolute(reference.path))
        elif isinstance(reference, LayoutReference):
            reference = replace(reference, directory=_absolute(reference.directory))
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        place = str(_absolute(config)) if config else ""
        return cls(str(reference), platform, insecure, place, environment=environment)

    def written_to(self, changes: Changes) -> ImageOrigin:
        """The same image to be written to."""
        place = changes.place
        return replace(self, writable=True, upper=place.upper, size=changes.size, token=place.token)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], digest: str) -> ImageOrigin:
        """As it was stored, at ``digest`` (of the manifest): a tag may have moved since."""
        origin = cls(**value)
        reference = parse_image(origin.image)
        if digest and isinstance(reference, RegistryReference):
            return replace(origin, image=str(replace(reference, tag=None, digest=digest)))
        if digest and isinstance(reference, LayoutReference):
            return replace(origin, image=str(replace(reference, tag=digest)))
        return origin

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def restore_environment(self) -> None:
        """Make this process's environment as it was for the first opening."""
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(self.environment)

    def load_settings(self) -> GlobalConfig:
        """Raises ConfigError or NotFoundError."""
        return load_global_config(Path(self.config) if self.config else None)

    def opener(self, settings: GlobalConfig) -> OpenDevice:
        request = ImageRequest(self.image, settings, platform=self.platform, insecure=self.insecure)

        async def open_device() -> Device:
            if not self.writable:
                return await open_image(request)
            from hybrid.core import writable_image  # what read-only mounts do without

            if not self.upper:
                reference = parse_image(self.image)
                assert isinstance(reference, ConfigReference)
                disk = await writable_image.open_config_upper(request, reference.path)
                writable_image.grow(disk, self.size)
                return disk
            return await writable_image.open_over(
                request, Path(self.upper), size=self.size, origin=self.to_json()
            )

        return open_device


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"cannot tell what {path} is: the current directory does not exist any more",
            hint="use an absolute path",
        ) from error
