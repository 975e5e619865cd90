"""One decoded SCSI request carried out on a Device, at once or in a task.

Data-out comes as views of the ring's data area. That memory is ours until the command is completed,
so it may be given to a ``Device.pwrite`` that suspends: the bytes do not change under it.

Commands that are outstanding at the same time have no order among each other (SCSI simple tags).
SYNCHRONIZE CACHE therefore covers the writes that were completed before it came, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.block.scsi import check_mode_select, unmap_ranges
from hybrid.block.scsi_unit import LogicalUnit, Op, Request
from hybrid.block.sense import CheckCondition, miscompare
from hybrid.core.device import Buffer, Device

_CHUNK = 1 << 20
"""Bytes that VERIFY and WRITE SAME handle at a time."""
_NO_DATA: Sequence[Buffer] = ()


def data_out_length(unit: LogicalUnit, request: Request) -> int:
    """Bytes that the initiator has to send along with a request."""
    if request.op == Op.WRITE_SAME:
        return 0 if request.data else unit.block_size
    sends = (Op.WRITE, Op.UNMAP, Op.VERIFY, Op.MODE_SELECT)
    return request.length if request.op in sends else 0


def run_nowait(
    device: Device, unit: LogicalUnit, request: Request, data: Sequence[memoryview]
) -> Sequence[Buffer] | None:
    """Carry out a request if nothing has to wait, and return its data-in; else None.

    None means that ``run`` has to do it, from the beginning: a write may then be done partly twice,
    which changes nothing. Raises CheckCondition, and what the Device raises.
    """
    op = request.op
    if op == Op.REPLY:
        return (request.data,)
    if op == Op.MODE_SELECT:
        check_mode_select(unit, request, b"".join(data))
        return _NO_DATA
    if op == Op.NOTHING or (op == Op.FLUSH and not device.writable):
        return _NO_DATA
    if request.fua and device.writable:
        return None
    if op == Op.READ:
        return device.read_parts_nowait(request.offset, request.length)
    if op == Op.WRITE and _write_nowait(device, request.offset, data):
        return _NO_DATA
    return None


async def run(
    device: Device, unit: LogicalUnit, request: Request, data: Sequence[memoryview]
) -> Sequence[Buffer]:
    """Carry out a request that ``run_nowait`` left, and return its data-in.

    Raises CheckCondition, and what the Device raises.
    """
    op = request.op
    if op == Op.FLUSH or (op == Op.READ and request.fua and device.writable):
        await device.flush()
    if op == Op.READ:
        return (await device.pread(request.offset, request.length),)
    if op == Op.VERIFY:
        await _verify(device, request, b"".join(data))
    if op in (Op.WRITE, Op.UNMAP, Op.WRITE_SAME):
        await _change(device, unit, request, data)
        if request.fua:
            await device.flush()
    return _NO_DATA


def _write_nowait(device: Device, offset: int, data: Sequence[memoryview]) -> bool:
    for view in data:
        if not device.pwrite_nowait(offset, view):
            return False
        offset += len(view)
    return True


async def _change(
    device: Device, unit: LogicalUnit, request: Request, data: Sequence[memoryview]
) -> None:
    if request.op == Op.WRITE:
        offset = request.offset
        for view in data:
            await device.pwrite(offset, view)
            offset += len(view)
    elif request.op == Op.UNMAP:
        for offset, length in unmap_ranges(unit, b"".join(data)):
            await device.discard(offset, length)
    else:
        await _write_same(device, request, request.data or b"".join(data))


async def _write_same(device: Device, request: Request, block: bytes) -> None:
    """Zeros are discarded, since a discarded range reads as zeros (LBPRZ), with UNMAP or without.

    Any other block is written, with UNMAP too: what is read later has to be what was asked for
    (SBC-4, WRITE SAME(16), for LBPRZ 001b).
    """
    if not any(block):
        await device.discard(request.offset, request.length)
        return
    pattern = memoryview(block * (min(_CHUNK, request.length) // len(block)))
    for done in range(0, request.length, _CHUNK):
        await device.pwrite(request.offset + done, pattern[: request.length - done])


async def _verify(device: Device, request: Request, expected: bytes) -> None:
    for done in range(0, request.length, _CHUNK):
        wanted = expected[done : done + _CHUNK]
        found = await device.pread(request.offset + done, len(wanted))
        if found != wanted:
            first = next(i for i, byte in enumerate(wanted) if byte != found[i])
            raise CheckCondition(miscompare(done + first))
