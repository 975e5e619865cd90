"""One row per setting, and the reader that holds a JSON file against its rows.

A key is written with dots (``cacheConfig.cacheDir``). Every key is type-checked, also those that
have no effect: a file that overlaybd would trip over shall not pass here by chance.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from hybrid.config.strict_json import parse_json
from hybrid.errors import ConfigError, NotFoundError, PermissionNeededError

logger = logging.getLogger("hybrid.config")

MAX_FILE_BYTES = 4 << 20
"""No configuration is longer; 255 lowers with long paths need about 200 KiB."""

MAX_INTEGER = (1 << 63) - 1


class Kind(Enum):
    """The JSON type of a value, by the name that messages and the documentation use."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    STRING = "string"
    OBJECT = "object"
    ARRAY = "array"


@dataclass(frozen=True)
class Setting:
    """A key, what it may be, and what it means. Limits are inclusive, in the value's own unit."""

    key: str
    kind: Kind
    default: bool | int | float | str | None
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    applies: bool = True
    """False: a key of overlaybd that hybrid checks and otherwise ignores."""
    not_done: str = ""
    """With ``applies`` false: what the user asked for, and does not get, by setting it true."""


class Values:
    """The checked values of one object. Getters give the row's default where the key is absent.

    ``place`` goes in front of keys in messages (``lowers[2].``).
    """

    def __init__(
        self,
        file: Path | None,
        rows: Iterable[Setting],
        values: dict[str, Any],
        *,
        place: str = "",
    ) -> None:
        self.file = file
        self._place = place
        self._rows = {row.key: row for row in rows}
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str:
        return str(self._value(key))

    def flag(self, key: str) -> bool:
        return bool(self._value(key))

    def integer(self, key: str) -> int:
        return int(self._value(key))

    def number(self, key: str) -> float:
        return float(self._value(key))

    def path(self, key: str) -> Path | None:
        """A file name; relative ones start at the directory of the file. None if empty.

        Raises ConfigError for ``~``, which only a shell would understand.
        """
        text = self.text(key)
        if not text:
            return None
        if text.startswith("~"):
            self.refuse(key, f"{text!r}: '~' is no home directory here", "write the whole path")
        return Path(text) if self.file is None else self.file.absolute().parent / text

    def mapping(self, key: str) -> dict[str, Any]:
        """An object with free keys; the caller checks what is in it."""
        return dict(self._value(key) or {})

    def refuse(self, key: str, problem: str, hint: str = "") -> NoReturn:
        """Raise the ConfigError that says what is wrong with a key."""
        where = f"{self.file or 'built-in defaults'}: {self._place}{key}"
        raise ConfigError(f"{where}: {problem}", hint=hint)

    def _value(self, key: str) -> Any:
        return self._values.get(key, self._rows[key].default)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError with line and column, or that it is missing."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"no such configuration file: {path}") from error
    except PermissionError as error:
        raise PermissionNeededError(f"cannot read {path}: permission denied") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes")
    value = parse_json(data, str(path), ConfigError)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object, got {_type_name(value)}")
    return value


def check_object(
    file: Path,
    value: Mapping[str, Any],
    rows: Iterable[Setting],
    *,
    place: str = "",
    warn_unknown: bool = True,
) -> dict[str, Any]:
    """Check an object against the rows; returns dotted key -> value for what is present.

    ``place`` goes in front of keys in messages (``lowers[2].``). Unknown keys are warned about, or
    only mentioned in the debug log. Raises ConfigError naming file and key.
    """
    known = {row.key: row for row in rows}
    sections = {key[: i + 1] for key in known for i, c in enumerate(key) if c == "."}
    found: dict[str, Any] = {}
    pending = [("", value)]
    while pending:
        prefix, part = pending.pop()
        for name, item in part.items():
            key = prefix + name
            if f"{key}." in sections and "." not in name:
                require_kind(file, place + key, item, Kind.OBJECT)
                pending.append((f"{key}.", item))
            elif key in known and "." not in name:
                check_value(file, place + key, item, known[key])
                found[key] = item
            else:
                _report_unknown(file, place, key, {*known, *sections}, warn_unknown)
    return found


def check_value(file: Path, key: str, value: Any, row: Setting) -> None:
    """Raise ConfigError unless the value has the type and the limits of its row."""
    require_kind(file, key, value, row.kind)
    if row.choices and value not in row.choices:
        choices = ", ".join(choice for choice in row.choices if choice)
        refuse(file, key, f"{value!r} is not known", f"it is one of {choices}")
    if row.minimum is not None and value < row.minimum:
        refuse(file, key, f"{value} is too small", f"at least {row.minimum:g}")
    if row.maximum is not None and value > row.maximum:
        refuse(file, key, f"{value} is too large", f"at most {row.maximum:g}")


def require_kind(file: Path, key: str, value: Any, kind: Kind) -> None:
    """Raise ConfigError unless the value has this JSON type. An integer is a number as well."""
    actual = _kind_of(value)
    if actual is not kind and not (kind is Kind.NUMBER and actual is Kind.INTEGER):
        refuse(file, key, f"expected {_with_article(kind)}, got {_type_name(value)}")
    if kind is Kind.STRING and not _is_plain(value):
        refuse(file, key, "the string has control characters or half characters in it")
    if actual is Kind.INTEGER and abs(value) > MAX_INTEGER:
        refuse(file, key, "the number is too large")
    if actual is Kind.NUMBER and not math.isfinite(value):
        refuse(file, key, "the number is too large")


def refuse(file: Path, key: str, problem: str, hint: str = "") -> NoReturn:
    """Raise the ConfigError that says what is wrong with a key."""
    raise ConfigError(f"{file}: {key}: {problem}", hint=hint)


def _kind_of(value: Any) -> Kind | None:
    # bool first: in Python it is an int.
    for kind, types in (
        (Kind.BOOLEAN, bool),
        (Kind.INTEGER, int),
        (Kind.NUMBER, float),
        (Kind.STRING, str),
        (Kind.OBJECT, dict),
        (Kind.ARRAY, list),
    ):
        if isinstance(value, types):
            return kind
    return None


def _type_name(value: Any) -> str:
    kind = _kind_of(value)
    return "null" if kind is None else _with_article(kind)


def _with_article(kind: Kind) -> str:
    return f"an {kind.value}" if kind.value[0] in "aio" else f"a {kind.value}"


def _is_plain(text: str) -> bool:
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text)


def _report_unknown(file: Path, place: str, key: str, known: set[str], warn: bool) -> None:
    by_lower = {name.rstrip(".").lower(): name.rstrip(".") for name in known}
    close = difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.75)
    meant = by_lower[close[0]] if close else ""
    hint = f"; did you mean {meant}?" if meant else ""
    if meant == key:
        # Only how it is written is wrong: with a dot in the key itself.
        hint = "; write an object inside of an object instead of a dot"
    level = logging.WARNING if warn else logging.DEBUG
    logger.log(level, "%s: unknown key %s ignored%s", file, ascii(place + key)[1:-1], hint)
