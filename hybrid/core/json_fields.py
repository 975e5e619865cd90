"""JSON from strangers, read field by field: each has its type, or there is a FormatError.

PURE. Used for manifests, indexes and the files of an OCI layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from hybrid.config.strict_json import parse_json
from hybrid.errors import FormatError

MAX_SIZE = (1 << 63) - 1
MAX_ENTRIES = 10_000
"""Most objects in an array. Four MiB have room for a million, which would take seconds."""


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``. Raises FormatError."""
    value = parse_json(data, where, FormatError)
    if not isinstance(value, dict):
        raise FormatError(f"{where} is not a JSON object")
    return value


class Fields:
    """An object with its name (``where``), for messages. null counts as absent, as in Go."""

    def __init__(self, value: dict[str, Any], where: str) -> None:
        self.where = where
        self._value = value

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def string(self, name: str) -> str:
        """A string that must be there."""
        if not self.has(name):
            self._refuse(name, "missing")
        return self.optional_string(name)

    def optional_string(self, name: str) -> str:
        """A string, "" if absent."""
        return self._text(name, self._value[name]) if self.has(name) else ""

    def optional_integer(self, name: str) -> int | None:
        value = self._value.get(name)
        if value is not None and type(value) is not int:
            self._refuse(name, "no integer")
        return value

    def size(self, name: str) -> int:
        """A number of bytes that must be there."""
        value = self.optional_integer(name)
        if value is None:
            self._refuse(name, "missing")
        if not 0 <= value <= MAX_SIZE:
            self._refuse(name, "no possible size")
        return value

    def strings(self, name: str) -> dict[str, str]:
        """An object with strings only; {} if absent."""
        if not self.has(name):
            return {}
        items = self.nested(name)._value
        return {
            self._text(f"{name} (a key)", key): self._text(f"{name}.{key!a}", item)
            for key, item in items.items()
        }

    def string_list(self, name: str) -> tuple[str, ...]:
        """An array of strings that must be there; at most MAX_ENTRIES."""
        value = self._value.get(name)
        if not isinstance(value, list):
            self._refuse(name, "missing" if value is None else "no array")
        if len(value) > MAX_ENTRIES:
            self._refuse(name, f"too long: {len(value)} entries, at most {MAX_ENTRIES} can be")
        return tuple(self._text(f"{name}[{n}]", item) for n, item in enumerate(value))

    def nested(self, name: str) -> Fields:
        """An object that must be there."""
        value = self._value.get(name)
        if not isinstance(value, dict):
            self._refuse(name, "missing" if value is None else "no object")
        return Fields(value, f"{self.where}: {name}")

    def nested_list(self, name: str) -> Iterator[Fields]:
        """The objects of an array that must be there; at most MAX_ENTRIES."""
        value = self._value.get(name)
        if not isinstance(value, list):
            self._refuse(name, "missing" if value is None else "no array")
        if len(value) > MAX_ENTRIES:
            self._refuse(name, f"too long: {len(value)} entries, at most {MAX_ENTRIES} can be")
        for number, item in enumerate(value):
            if not isinstance(item, dict):
                self._refuse(f"{name}[{number}]", "no object")
            yield Fields(item, f"{self.where}: {name}[{number}]")

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            self._refuse(name, "no string")
        # JSON can spell half characters, which nothing can print or write.
        if any("\ud800" <= c <= "\udfff" for c in value):
            self._refuse(name, "no valid text")
        return value

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise FormatError(f"{self.where}: field {name} is {problem}")
