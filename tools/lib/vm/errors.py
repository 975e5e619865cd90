"""What ends tools/vm without an exit code of the guest's."""

from __future__ import annotations

from collections.abc import Sequence


class VmError(Exception):
    """No exit code came from the guest: it could not be started, or it died.

    ``details`` are lines to be shown below the message.
    """

    exit_code = 125

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = details


class UsageError(VmError):
    """The command line makes no sense."""

    exit_code = 2


class GuestLostError(VmError):
    """The guest ended before anything came from it: most likely it did not even start."""


class GuestTimeoutError(VmError):
    """The command did not end in time."""

    exit_code = 124


class OutputClosedError(VmError):
    """Whoever read the output went away; the code is that of a program that SIGPIPE ended."""

    exit_code = 141
