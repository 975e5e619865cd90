"""A FUSE file system whose tree is fixed: whatever would change a name or an attribute is refused.

In a read-only FUSE mount the kernel refuses all this itself (EROFS).
"""

from __future__ import annotations

import errno
from typing import Any, NoReturn

import pyfuse3
from pyfuse3 import FUSEError


async def _refuse(*_: Any) -> NoReturn:
    """Without this, pyfuse3 would answer ENOSYS, "Function not implemented"."""
    raise FUSEError(errno.EPERM)


_REFUSED: Any = _refuse  # whatever its arguments


class UnchangeableTree(pyfuse3.Operations):
    create = mknod = mkdir = symlink = link = _REFUSED
    unlink = rmdir = rename = _REFUSED
    setattr = setxattr = removexattr = _REFUSED
