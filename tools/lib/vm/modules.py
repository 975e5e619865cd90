"""Which kernel module needs which, by what depmod wrote (man: modules.dep(5))."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vm.errors import VmError


def load_order(directory: Path, names: Iterable[str]) -> list[Path]:
    """The files of these modules and of all that they need, in the order to load them.

    ``directory`` is /lib/modules/RELEASE. What is built into the kernel is left out. Raises VmError
    for a module that the kernel does not have.
    """
    needs = parse_needs((directory / "modules.dep").read_text())
    builtin = {module_name(line) for line in _lines(directory / "modules.builtin")}
    paths = {module_name(path): path for path in needs}
    order: dict[str, None] = {}
    for name in names:
        if name in builtin:
            continue
        if name not in paths:
            raise VmError(f"the kernel in {directory} has no module {name}")
        order.update(dict.fromkeys([*reversed(needs[paths[name]]), paths[name]]))
    return [directory / path for path in order]


def parse_needs(text: str) -> dict[str, list[str]]:
    """Path of each module, and the paths of all that it needs, the deepest last."""
    needs = {}
    for line in text.splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    return needs


def module_name(path: str) -> str:
    """The module that a file holds: the kernel takes hyphens for underscores."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
