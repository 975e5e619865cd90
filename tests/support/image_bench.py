"""A MountBench that runs ``hybrid`` itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.mounting import MountBench


class ImageBench(MountBench):
    """``hybrid`` itself, with a cache and a global configuration of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.config = directory / "hybrid.json"
        self.configure()
        self.environment["HYBRID_CONFIG"] = str(self.config)

    def configure(self, **more: Any) -> None:
        cache = {"cacheType": "file", "cacheDir": str(self.directory / "cache"), "cacheSizeGB": 1}
        registry = {"retryBudget": 2}
        self.config.write_text(json.dumps({"cacheConfig": cache, "registry": registry} | more))

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "hybrid", *map(str, arguments)]
