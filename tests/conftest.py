"""What all tests share: Hypothesis profiles, and a private home so that no test sees the user's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Derandomized: the same examples on every machine. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_LAYERS = ("test_", "core/", "build/", "fuse/", "block/", "mount/", "conformance/", "cli/", "e2e/")
IN_GUEST = os.environ.get("HYBRID_TEST_GUEST") == "1"
"""Set in the guest that tools/test starts: its kernel has what tests marked ``guest`` need."""


@pytest.fixture(autouse=True)
def _private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "HYBRID_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, for what synchronises a lot."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    made = tempfile.mkdtemp(prefix="hybrid-test-", dir="/dev/shm")
    yield Path(made)
    shutil.rmtree(made)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lowest layer first, so that the first failure is the one nearest to its cause.

    Tests marked ``guest`` run in the guest only, and there nothing else does: it is slow.
    """
    elsewhere = [item for item in items if ("guest" in item.keywords) != IN_GUEST]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if ("guest" in item.keywords) == IN_GUEST]
    root = Path(__file__).parent

    def layer(item: pytest.Item) -> int:
        place = item.path.relative_to(root).as_posix()
        return next(
            (i for i, prefix in enumerate(_LAYERS) if place.startswith(prefix)), len(_LAYERS)
        )

    items.sort(key=layer)
