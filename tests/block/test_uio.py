"""Opening a uio device: what can be wrong with it. The real thing is in test_ring_guest.py.

/dev/zero stands in for the device here: a character device that can be mapped, read and written.
"""

import ctypes
import errno
import os
import re
import stat
from pathlib import Path

import pytest
from support.tcmu_kernel import FakeUio, TcmuKernel

import hybrid.block.uio as uio_module
from hybrid.block.uio import Uio
from hybrid.errors import NotFoundError, PermissionNeededError, SystemSupportError

SIZE = 1 << 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root only")


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev of our own, without any node; sysfs says that uio0 is device 1:5."""
    sysfs = tmp_path / "sysfs" / "uio0"
    (sysfs / "maps/map0").mkdir(parents=True)
    (sysfs / "dev").write_text("1:5\n")
    (sysfs / "maps/map0/size").write_text(f"{SIZE:#x}\n")
    dev = tmp_path / "dev"
    dev.mkdir()
    monkeypatch.setattr(uio_module, "_SYSFS", sysfs.parent)
    monkeypatch.setattr(uio_module, "_DEV", dev)
    return dev


@needs_root
def test_a_missing_node_is_made(devices: Path) -> None:
    uio = Uio.open("uio0")
    status = (devices / "uio0").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (uio.name, len(uio.view), uio.view.readonly) == ("uio0", SIZE, False)
    assert not os.get_inheritable(uio.fd)
    assert not os.get_blocking(uio.fd)
    uio.view[5] = 7
    uio.notify()
    assert uio.consume()
    uio.close()
    Uio.open("uio0").close()


@needs_root
def test_a_view_that_is_left_over_does_no_harm(devices: Path) -> None:
    uio = Uio.open("uio0")
    left_over = uio.view[10:20]
    uio.close()
    left_over[0] = 1
    left_over.release()


@needs_root
def test_a_child_has_no_map(devices: Path) -> None:
    uio = Uio.open("uio0")
    address = ctypes.addressof(ctypes.c_char.from_buffer(uio.view))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if borders := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(borders[1], 16) <= address < int(borders[2], 16)
        elif inside and line.startswith("VmFlags:"):
            assert "dc" in line.split()  # "do not copy area on fork"
            break
    else:
        raise AssertionError("the map is not there")
    uio.close()


@needs_root
def test_a_node_of_another_device_is_not_used(devices: Path) -> None:
    os.mknod(devices / "uio0", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with pytest.raises(SystemSupportError, match=r"uio0 is not character device 1:5") as caught:
        Uio.open("uio0")
    assert "remove" in caught.value.hint
    (devices / "uio0").unlink()
    (devices / "uio0").write_bytes(bytes(SIZE))
    with pytest.raises(SystemSupportError, match=r"uio0 is not character device 1:5"):
        Uio.open("uio0")


@needs_root
def test_a_map_that_the_kernel_refuses(devices: Path) -> None:
    (devices.parent / "sysfs/uio0/maps/map0/size").write_text("0x0\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SystemSupportError, match=r"cannot map .*uio0 \(0 bytes\)"):
        Uio.open("uio0")
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_such_device(devices: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no TCMU device uio1: .* does not exist"):
        Uio.open("uio1")


@pytest.mark.parametrize("name", ["", "uio", "../uio0", "uio0/", "uio0\n", "sda"])
def test_no_name_of_a_device(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a uio device"):
        Uio.open(name)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, PermissionNeededError),
        (errno.ENODEV, NotFoundError),
        (errno.EMFILE, SystemSupportError),
    ],
)
def test_a_node_that_cannot_be_opened(
    devices: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    (devices / "uio0").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(kind, match=r"cannot open .*uio0"):
            Uio.open("uio0")


def test_a_node_that_cannot_be_made(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uio_module, "_DEV", devices / "nowhere")
    with pytest.raises(SystemSupportError, match="does not exist and cannot be made") as caught:
        Uio.open("uio0")
    assert "uio0 c 1 5" in caught.value.hint


@needs_root
def test_signals_of_a_device_that_is_gone(devices: Path) -> None:
    uio = Uio.open("uio0")
    os.close(uio.fd)
    uio.fd = os.open("/proc/self/mem", os.O_RDWR)  # address 0 is not mapped: EIO
    assert not uio.consume()
    uio.notify()
    os.close(uio.fd)
    uio.fd = os.eventfd(0, os.EFD_NONBLOCK)
    uio.notify()  # an eventfd wants eight bytes: EINVAL, as the kernel says for writes
    os.close(uio.fd)
    uio.fd = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        uio.notify()
    with pytest.raises(OSError, match="Is a directory"):
        uio.consume()
    uio.close()


async def test_the_fake_device_signals_as_the_real_one_does() -> None:
    fake = FakeUio(TcmuKernel(ring_size=4096, data_blocks=4))
    assert fake.consume()
    fake.poke()
    assert fake.consume()
    fake.remove()
    assert not fake.consume()
    fake.close()
