"""Make the archives of the demo image: files of this machine as three layers of a plain OCI image.

    layer 1   Python's library and the C compiler, a message of the day, a file to be deleted
    layer 2   the message changed, the file deleted
    layer 3   a program added

Nothing is downloaded for it, and it is large enough to show that only a part is fetched.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

_BULK = (Path("/usr/lib/python3.11"), Path("/usr/lib/gcc"))
_SKIPPED = ("__pycache__", "dist-packages")
_PROGRAM = Path("/usr/bin/python3.11")


def make_layers(directory: Path) -> list[Path]:
    """The three archives, bottom first."""
    paths = [directory / f"layer{number}.tar" for number in (1, 2, 3)]
    with _archive(paths[0]) as bottom:
        for source in _BULK:
            bottom.add(source, str(source)[1:], filter=_wanted)
        _add(bottom, "etc/motd", "Hello from layer 1. You should not see this.\n")
        _add(bottom, "etc/obsolete.conf", "deleted = in layer 2\n")
    with _archive(paths[1]) as middle:
        _add(middle, "etc/motd", "Hello from an overlaybd image, mounted lazily by hybrid.\n")
        _add(middle, "etc/.wh.obsolete.conf", "")
    with _archive(paths[2]) as top:
        top.add(_PROGRAM.resolve(), "srv/app/python")
    return paths


def _archive(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "w", format=tarfile.PAX_FORMAT)


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = member.name.rpartition("/")[2]
    return None if name in _SKIPPED or name.endswith(".a") else member


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    archive.addfile(member, io.BytesIO(text.encode()))


if __name__ == "__main__":
    for path in make_layers(Path(sys.argv[1])):
        print(path)
