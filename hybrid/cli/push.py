"""``hybrid push``: see ``hybrid.cli.copy``."""

from __future__ import annotations

from hybrid.cli.copy import push_command as command

__all__ = ["command"]
