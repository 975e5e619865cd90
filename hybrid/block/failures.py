"""What a failed command answers: an exception becomes sense data, with the reason in the log."""

from __future__ import annotations

import logging

from hybrid.block import sense
from hybrid.block.scsi_unit import LogicalUnit, Op, Request
from hybrid.errors import HybridError, StorageFullError

logger = logging.getLogger(__name__)


def sense_of(error: Exception, unit: LogicalUnit, request: Request | None, name: str) -> bytes:
    """The sense data for ``error``, logged once. ``name`` is the Device's.

    ``request`` is None if the command could not even be decoded. A CheckCondition is the
    initiator's mistake, which it learns from the sense data: not logged.
    """
    if isinstance(error, sense.CheckCondition):
        return error.sense
    if request is None or not isinstance(error, HybridError):
        logger.error("EIO for %s of %s: a bug", _what(request), name, exc_info=error)
        return sense.hardware_error()
    if isinstance(error, StorageFullError) and request.op not in (Op.READ, Op.VERIFY):
        logger.error("ENOSPC for %s of %s: %s", _what(request), name, error)
        return sense.space_exhausted()
    logger.error("EIO for %s of %s: %s", _what(request), name, error)
    lba = request.offset // unit.block_size
    if request.op in (Op.READ, Op.VERIFY):
        return sense.medium_read_error(lba)
    return sense.medium_write_error(lba)


def _what(request: Request | None) -> str:
    if request is None:
        return "a command"
    verb = "" if request.op == Op.READ else f"{request.op.name} "
    return f"{verb}{request.length} bytes at {request.offset}"
