"""A tree that behaves like the target part of configfs, as far as names and errno go.

mkdir fills a directory with its attribute files and default groups, rmdir takes those away, and
refuses while children or links are there. Every operation is recorded, and one can be made to fail.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.block import kernel_files, names

_GROUPS = {"attrib", "wwn", "action", "lun"}
_BACKSTORE = (
    "control",
    "enable",
    "attrib/cmd_time_out",
    "attrib/emulate_write_cache",
    "attrib/nl_reply_supported",
    "wwn/vpd_unit_serial",
    "action/block_dev",
    "action/reset_ring",
)


class FakeConfigfs:
    """``names.ROOT`` and ``names.UIO_CLASS`` for one test."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = directory / "target"
        self.uio_class = directory / "uio"
        os.makedirs(self.root / "core")
        os.makedirs(self.uio_class)
        self.operations: list[tuple[str, str]] = []
        """("mkdir" | "rmdir" | "write" | "link" | "unlink", path with the written value)"""
        self.fail_at: tuple[int, int] | None = None
        """Which operation fails (counted from 0), and with which errno."""
        patch.setattr(names, "ROOT", self.root)
        patch.setattr(names, "UIO_CLASS", self.uio_class)
        patch.setattr(Path, "mkdir", self._wrap("mkdir", Path.mkdir, after=self._fill))
        patch.setattr(Path, "rmdir", self._wrap("rmdir", Path.rmdir, before=self._empty))
        patch.setattr(Path, "symlink_to", self._wrap("link", Path.symlink_to))
        patch.setattr(Path, "unlink", self._wrap("unlink", Path.unlink))
        patch.setattr(kernel_files, "write_raw", self._write)

    def tree(self) -> list[str]:
        """Directories and links, without attributes and default groups."""
        return sorted(
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if (path.is_dir() and path.name not in _GROUPS) or path.is_symlink()
        )

    def uio_names(self) -> list[str]:
        return sorted((path / "name").read_text() for path in self.uio_class.iterdir())

    def written(self) -> list[str]:
        return [what for kind, what in self.operations if kind == "write"]

    def _record(self, kind: str, path: Path, value: str = "") -> None:
        place = str(path.relative_to(self.root))
        self.operations.append((kind, f"{place}={value}" if value else place))
        if self.fail_at and len(self.operations) - 1 == self.fail_at[0]:
            raise OSError(self.fail_at[1], os.strerror(self.fail_at[1]))

    def _wrap(
        self,
        kind: str,
        original: Callable[..., None],
        before: Callable[[Path], None] = lambda path: None,
        after: Callable[[Path], None] = lambda path: None,
    ) -> Callable[..., None]:
        def wrapped(path: Path, *arguments: Any, **options: Any) -> None:
            if not path.is_relative_to(self.root):
                original(path, *arguments, **options)
                return
            self._record(kind, path)
            before(path)
            original(path, *arguments, **options)
            after(path)

        return wrapped

    def _write(self, path: Path, token: str) -> None:
        self._record("write", path, token)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        path.write_text(token)
        if path.name == "enable":
            backstore = path.parent
            number = backstore.parent.name.removeprefix("user_")
            config = backstore.name.replace("-", "/", 1)
            uio = self.uio_class / f"uio{len(list(self.uio_class.iterdir())) + 3}"
            os.mkdir(uio)
            (uio / "name").write_text(f"tcm-user/{number}/{backstore.name}/{config}\n")

    def _fill(self, path: Path) -> None:
        files: tuple[str, ...] = ()
        match path.relative_to(self.root).parts:
            case ("core", _):
                files = ("hba_info", "hba_mode")
            case ("core", _, _):
                files = _BACKSTORE
            case ("loopback",):
                files = ("version",)
            case ("loopback", _, _):
                files = ("nexus", "address", "lun/")
        for name in files:
            os.makedirs(
                (path / name).parent if not name.endswith("/") else path / name, exist_ok=True
            )
            if not name.endswith("/"):
                (path / name).touch()
        if path.name == "tpgt_1":
            (path / "address").write_text("7:0:1\n")

    def _empty(self, path: Path) -> None:
        if not path.is_dir():
            return
        if any(link.readlink() == path for link in self.root.rglob("*") if link.is_symlink()):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for child in path.iterdir():
            if child.is_symlink() or (child.is_dir() and child.name not in _GROUPS):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if any((path / "lun").glob("*")):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        for child in path.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            else:
                os.unlink(child)
        for uio in self.uio_class.iterdir():
            if path.name.startswith("hybrid-") and f"/{path.name}/" in (uio / "name").read_text():
                shutil.rmtree(uio)
