"""What a registry wants to see: WWW-Authenticate parsed. PURE. RFC 9110, section 11."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_HEADER_CHARACTERS = 65536

_SEPARATORS = re.compile(r"[\s,]*")
# A quoted value may hold commas, spaces and escaped quotes; a missing end quote is tolerated.
_PARAMETER = re.compile(r"""([!#$%&'*+.^_`|~\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|([^\s,"]*))""")
_SCHEME = re.compile(r"[!#$%&'*+.^_`|~\w-]+")


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate; ``scheme`` and the names of ``parameters`` in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of all WWW-Authenticate headers, in their order. Never raises."""
    found: list[Challenge] = []
    for header in headers:
        found += _parse_header(header[:MAX_HEADER_CHARACTERS])
    return found


def _parse_header(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _skip(header, position)) < len(header):
        parameter = _PARAMETER.match(header, position)
        scheme = _SCHEME.match(header, position)
        if parameter is not None and found:
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(name.lower(), value)
            position = parameter.end()
        elif scheme is not None:
            found.append((scheme[0].lower(), {}))
            position = scheme.end()
        else:
            position += 1
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _skip(header: str, position: int) -> int:
    match = _SEPARATORS.match(header, position)
    return match.end() if match else position
