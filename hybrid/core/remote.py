"""Registry and block cache, set up by the global configuration.

Apart from ``hybrid.core.image``, because the HTTP client takes 70 ms to import and images on disk
do without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from hybrid.config import GlobalConfig, RegistryHost
from hybrid.core.cache import BlobCache
from hybrid.core.credentials import Credentials
from hybrid.core.device import Source
from hybrid.core.hosts import host_name, is_loopback
from hybrid.core.reference import RegistryReference, api_host
from hybrid.core.registry import Registry
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.transport import first_schemes
from hybrid.errors import ConfigError, UnsupportedError

MAX_BLOB_BYTES = 1 << 40
"""The cache's file begins with 4 bytes for each 64 KiB; a manifest may claim any size."""


class RemoteBlobs:
    """Blobs of one repository, read through the cache."""

    def __init__(
        self, registry: Registry, cache: BlobCache, ref: RegistryReference, scheme: str | None
    ) -> None:
        self.registry = registry
        self._cache = cache
        self._ref = ref
        self._scheme = scheme
        self._vouched_by = vouched_by(ref.api_host, registry.settings.hosts, scheme)

    async def source(self, digest: str, size: int) -> Source:
        """A blob to read at random. ``size`` 0 means unknown: the registry is asked.

        Raises UnsupportedError above MAX_BLOB_BYTES.
        """
        size = size or await self.registry.blob_size(self._ref, digest, scheme=self._scheme)
        if size > MAX_BLOB_BYTES:
            raise UnsupportedError(
                f"{self._ref.name}@{digest}: {size} bytes are too many for a layer"
            )
        origin = self.registry.blob_source(self._ref, digest, size, scheme=self._scheme)
        return self._cache.open(origin, digest, self._vouched_by)


def vouched_by(host: str, hosts: Mapping[str, RegistryHost], scheme: str | None) -> str:
    """On whose word the blobs of a registry have their digests. ``host`` may have a port.

    A registry checks digests when blobs are uploaded, so its word holds for all its repositories,
    as long as it is certain who speaks: what a man in the middle could have changed is kept apart
    from what TLS protects. A verified registry may redirect to a host that need not be verified.
    """
    if is_loopback(host_name(host)):
        return f"loopback {host}"
    options = hosts.get(host, RegistryHost())
    schemes = [scheme] if scheme else first_schemes(host, options)
    if options.insecure or schemes != ["https"]:
        return f"unverified {host}"
    insecure = sorted(
        name for name, found in hosts.items() if found.insecure and not is_loopback(host_name(name))
    )
    return " ".join([f"https://{host}", *insecure])


async def open_remote(
    config: GlobalConfig,
    ref: RegistryReference,
    stack: AsyncExitStack,
    *,
    scheme: str | None = None,
    insecure: bool = False,
) -> RemoteBlobs:
    """Connections and cache for one repository; closing the stack closes the connections."""
    settings = settings_of(config, ref.api_host if insecure else "")
    credentials = Credentials(config.credentials)
    registry = await stack.enter_async_context(Registry(settings, credentials))
    cache = BlobCache(
        config.cache_dir, limit_bytes=config.cache_limit_bytes, refill_size=config.refill_bytes
    )
    return RemoteBlobs(registry, cache, ref, scheme)


def settings_of(config: GlobalConfig, *insecure_hosts: str) -> RegistrySettings:
    """What the configuration says about registries; ``insecure_hosts`` ("": none) are excepted."""
    hosts: dict[str, RegistryHost] = {}
    for name, host in config.registries.items():
        if api_host(name) in hosts:
            raise ConfigError(f"registries: {name} and {api_host(name)} are one host; keep one")
        hosts[api_host(name)] = host
    for name in filter(None, insecure_hosts):
        hosts[name] = replace(hosts.get(name, RegistryHost()), insecure=True)
    defaults = RegistrySettings()
    return RegistrySettings(
        hosts=hosts,
        client_cert_file=config.client_cert_file,
        client_key_file=config.client_key_file,
        user_agent=config.user_agent or defaults.user_agent,
        connect_seconds=config.connect_seconds,
        read_seconds=config.read_seconds,
        retry_seconds=config.retry_seconds,
    )
