"""Platforms (``linux/arm64/v8``): their normal form, and which one an image index offers best.

PURE. Normal forms and the order of preference are those of containerd, so that hybrid takes the
same manifest as a container runtime on the same machine does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.errors import UsageError

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
"""Names of machines (``uname -m``) that differ from the name in images."""
_ARM_VARIANTS = {"armel": "v6", "armv5": "v5", "armv6": "v6", "armv7": "v7", "armv8": "v8"}
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"v([0-9]{1,3})(?:\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest was made for, in its normal form (see ``normalize``)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform:
    """Understand ``OS/ARCHITECTURE[/VARIANT]``, or raise UsageError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(_WORD.fullmatch(part) for part in parts):
        raise UsageError(
            f"{text!r} is no platform", hint="write OS/ARCHITECTURE[/VARIANT], as in linux/arm64/v8"
        )
    return normalize(*parts)


def host_platform(machine: str) -> Platform:
    """The platform of a Linux machine, from what ``platform.machine()`` calls it."""
    return normalize("linux", machine)


def normalize(os: str, architecture: str, variant: str = "") -> Platform:
    """One name for one platform: ``aarch64`` and ``arm64/v8`` become ``arm64``."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture == "armhf":
        architecture, variant = "arm", "v7"
    elif architecture[:5] in _ARM_VARIANTS:
        # armv7l, armv8b and so on: the last letter is the byte order.
        architecture, variant = "arm", _ARM_VARIANTS[architecture[:5]]
    if variant.isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if (architecture, variant) == ("arm", ""):
        variant = "v7"
    return Platform(os, architecture, variant)


def acceptable(wanted: Platform) -> Iterator[Platform]:
    """What can stand in for a platform, best first; the first is ``wanted`` itself."""
    yield wanted
    os, architecture, variant = wanted.os, wanted.architecture, wanted.variant
    version = _VERSION.fullmatch(variant)
    level = int(version[1]) if version else 0
    if architecture == "amd64":
        yield from (normalize(os, "amd64", f"v{n}") for n in range(level - 1, 0, -1))
        yield Platform(os, "386")
    elif architecture == "arm":
        yield from (Platform(os, "arm", f"v{n}") for n in range(level - 1, 4, -1))
    elif architecture == "arm64":
        if level > 8:
            yield from (Platform(os, "arm64", f"v{n}") for n in range(level - 1, 8, -1))
            yield Platform(os, "arm64")
        yield from (Platform(os, "arm", f"v{n}") for n in range(8, 4, -1))
