"""Which proxy leads to a host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

Read here and not by httpx, which knows neither networks nor ports in NO_PROXY and whose errors
repeat the password of a proxy. Names in lower case go first. A loopback host never has a proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from hybrid.core.hosts import is_loopback, port_of
from hybrid.errors import ConfigError

SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})
HINT = "see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY"


@dataclass(frozen=True)
class Proxy:
    """A proxy. ``name`` is its ``host[:port]``, for messages; ``variable`` told us of it."""

    url: str = field(repr=False)
    """May have a password in it."""
    name: str
    variable: str


class Proxies:
    """The proxies that an environment names, as it was at the start."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        self._values = {name: environ.get(name, environ.get(name.upper(), "")) for name in names}
        self._direct = re.split(r"[\s,]+", self._values["no_proxy"].lower())

    def proxy_for(self, url: httpx.URL) -> Proxy | None:
        """The proxy to ``url``; None if it is reached directly. Raises ConfigError."""
        if is_loopback(url.host) or self._is_direct(url.host.lower(), port_of(url)):
            return None
        for name in (f"{url.scheme}_proxy", "all_proxy"):
            if self._values.get(name):
                return parse_proxy(name.upper(), self._values[name])
        return None

    def _is_direct(self, host: str, port: int | None) -> bool:
        return any(covers(entry, host, port) for entry in self._direct)


def parse_proxy(variable: str, value: str) -> Proxy:
    """The proxy that a variable names. Raises ConfigError, which repeats nothing of ``value``."""
    text = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(text)
        url = httpx.URL(text)
        usable = parts.scheme in SCHEMES and url.host != "" and parts.port != 0
        usable = usable and parts.path in ("", "/") and not parts.query and not parts.fragment
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise ConfigError(
            f"the proxy in {variable} is no address of a proxy",
            hint="it has the form http://[USER:PASSWORD@]HOST:PORT; special characters in %XX",
        )
    return Proxy(text, url.netloc.decode(), variable)


def covers(entry: str, host: str, port: int | None) -> bool:
    """Whether one entry of NO_PROXY (in lower case) is about ``host`` and ``port``.

    ``*``, an address, a network (``10.0.0.0/8``), ``name`` (and what is below it), ``.name`` or
    ``*.name`` (only what is below it). A port may follow all but networks. Else: about nothing.
    """
    if entry == "*":
        return True
    network = _network(entry)
    if network is None:
        # "a:80" and "[::1]:80" have a port; "::1" is all address and was a network above.
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d{1,5})", entry)
        if match is not None and int(match[2]) != port:
            return False
        entry = match[1] if match is not None else entry
        network = _network(entry)
    if network is not None:
        return _is_in(host, network)
    if not entry.strip("*."):
        return False
    if entry.startswith((".", "*.")):
        return host.endswith(entry.removeprefix("*"))
    return host == entry or host.endswith(f".{entry}")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(
            text[1:-1] if text.startswith("[") and text.endswith("]") else text, strict=False
        )
    except ValueError:
        return None


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
