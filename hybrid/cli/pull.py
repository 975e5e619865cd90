"""``hybrid pull``: see ``hybrid.cli.copy``."""

from __future__ import annotations

from hybrid.cli.copy import pull_command as command

__all__ = ["command"]
