"""JSON with one meaning only: what readers may understand in different ways is refused. PURE."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from hybrid.errors import HybridError

_SHOWN_CHARACTERS = 80


def parse_json(data: bytes, where: str, error_type: type[HybridError]) -> Any:
    """The value in ``data``. ``where`` names it in messages.

    Raises ``error_type`` for what is not UTF-8 or not JSON, for NaN and Infinity, and for a key
    that stands twice in one object: readers differ on which of the two values counts, so they
    would see different configurations or images in one text.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise error_type(f"{where}: {name} is no number in JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            shown = f"{name[:_SHOWN_CHARACTERS]!a}"
            raise error_type(f"{where}: the key {shown} stands twice in one object")
        return value

    try:
        text = data.decode("utf-8")
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise error_type(f"{where} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        hint = "JSON has no comments" if text[error.pos : error.pos + 1] in ("/", "#") else ""
        raise error_type(f"{where} is not JSON: {error.msg} at {place}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where} is not JSON that hybrid can read: {error}") from error
