"""Names of hosts, with and without their port, and which addresses they stand for. PURE."""

from __future__ import annotations

import ipaddress

import httpx

DEFAULT_PORTS = {"http": 80, "https": 443}


def host_name(host: str) -> str:
    """``host[:port]`` without the port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def has_port(host: str) -> bool:
    """Whether ``host[:port]`` names its port."""
    return ":" in host.rpartition("]")[2]


def port_of(url: httpx.URL) -> int | None:
    """The port of a URL, also if it is only implied; None for an unknown scheme."""
    return url.port or DEFAULT_PORTS.get(url.scheme)


def is_endpoint(host: str, url: httpx.URL) -> bool:
    """Whether ``url`` leads to ``host[:port]``. Without a port that is 80 or 443, by scheme.

    What holds for one port (a login, no verification) never holds for another: behind it may be
    somebody else's program.
    """
    port = int(host.rpartition(":")[2]) if has_port(host) else DEFAULT_PORTS.get(url.scheme)
    return host_name(host).lower() == url.host.lower() and port == port_of(url)


def is_loopback(name: str) -> bool:
    """Whether a host name (without port) is this machine: nobody can listen in between."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
