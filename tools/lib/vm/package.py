"""What is in the package of a kernel."""

from __future__ import annotations

import lzma
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from vm.errors import VmError
from vm.programs import run

_LEFT_OUT = ("sound/", *(f"drivers/{name}/" for name in (
    "gpu", "infiniband", "media", "net", "staging", "usb")))  # fmt: skip
"""Modules for hardware that the guest does not have: half of all bytes."""
_EXPAND_SECONDS = 120


def unpack(package: Path, target: Path) -> bytes:
    """Write the modules below ``target``, expanded; return the kernel as the package has it."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        kernel = _unpack_tar(process.stdout, target)
    if process.returncode or not kernel:
        raise VmError(f"{package.name} holds no kernel")
    return kernel


def _unpack_tar(stream: IO[bytes], target: Path) -> bytes:
    kernel = b""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                name = member.name.removeprefix("./").removeprefix("usr/")
                if file is None:
                    continue
                if name.startswith("boot/vmlinuz-"):
                    kernel = file.read()
                elif wanted(name):
                    _write_expanded(target / name, file.read())
    except (tarfile.TarError, lzma.LZMAError) as error:
        raise VmError(f"the kernel's package is damaged: {error}") from None
    return kernel


def wanted(name: str) -> bool:
    """Whether the guest gets this file: modules, but not all drivers."""
    if not name.startswith("lib/modules/"):
        return False
    _, _, inside = name.partition("/kernel/")
    return not inside.startswith(_LEFT_OUT)


def _write_expanded(path: Path, data: bytes) -> None:
    if path.suffix == ".xz":
        path, data = path.with_suffix(""), lzma.decompress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def uncompressed_kernel(image: bytes) -> bytes:
    """The ELF file in a bzImage; qemu starts it through its PVH note.

    kernel: Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, "HdrS" at 0x202, and from
    version 2.08 (at 0x206) on payload_offset and payload_length at 0x248. The last four bytes of
    the payload are the size of the ELF file. Raises VmError.
    """
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS" or image[0x207] < 2:
        raise VmError("the kernel is not a bzImage")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    elf = _expanded(payload[:-4])
    if not elf.startswith(b"\x7fELF") or len(elf) != int.from_bytes(payload[-4:], "little"):
        raise VmError("the kernel's bzImage does not hold what it should")
    return elf


def _expanded(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ"):
        try:
            # Not lzma.decompress: it minds what may follow.
            return lzma.LZMADecompressor().decompress(payload)
        except lzma.LZMAError as error:
            raise VmError(f"the kernel cannot be expanded: {error}") from None
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return run(["zstd", "-d", "-c"], _EXPAND_SECONDS, data=payload)
    raise VmError(f"the kernel is compressed in an unknown way ({payload[:4].hex()})")
