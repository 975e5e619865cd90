"""What the config of a new image says. PURE: values in, bytes out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.core.platforms import Platform
from hybrid.errors import UsageError

CREATED_BY = "hybrid build"
EPOCH = "1970-01-01T00:00:00Z"
"""There is no clock here: the same files give the same image."""


@dataclass(frozen=True)
class ImageFields:
    """What to do with an image, and what it is for. Empty fields are left out."""

    platform: Platform
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    """``NAME=VALUE``."""
    workdir: str = ""
    user: str = ""
    labels: tuple[tuple[str, str], ...] = ()


def new_config(fields: ImageFields, diff_id: str) -> bytes:
    """The config of an image of one layer."""
    values = {
        "User": fields.user,
        "Env": list(fields.env),
        "Entrypoint": list(fields.entrypoint),
        "Cmd": list(fields.cmd),
        "WorkingDir": fields.workdir,
        "Labels": dict(fields.labels),
    }
    platform = fields.platform
    document: dict[str, Any] = {
        "created": EPOCH,
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "config": {name: value for name, value in values.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": EPOCH, "created_by": CREATED_BY}],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse_words(text: str, option: str) -> tuple[str, ...]:
    """The words of a command: a JSON array, or text that is split as a shell does it.

    Raises UsageError, as all that follows.
    """
    check_text(text, option)
    try:
        if not text.lstrip().startswith("["):
            return tuple(shlex.split(text))
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {text} is no command: {error}") from None
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"{option} {text} is no array of strings")
    return tuple(words)


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """``NAME=VALUE``; the value may be empty."""
    check_text(text, option)
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{option} {text} is not of the form NAME=VALUE")
    return name, value


def parse_env(texts: Sequence[str]) -> tuple[str, ...]:
    """Variables in their order; of those of one name the last counts."""
    pairs = dict(parse_pair(text, "--env") for text in texts)
    return tuple(f"{name}={value}" for name, value in pairs.items())


def parse_workdir(text: str) -> str:
    check_text(text, "--workdir")
    if text and not text.startswith("/"):
        raise UsageError(f"--workdir {text} is no absolute path")
    return text


def check_text(text: str, option: str) -> str:
    """JSON cannot have other bytes than those of UTF-8, nor can arguments have NUL."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{option} {text!a} is not UTF-8") from None
    return text
