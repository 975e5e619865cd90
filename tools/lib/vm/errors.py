"""What ends tools/vm, in one line."""

from __future__ import annotations

EXIT_USAGE = 2
EXIT_TIMEOUT = 124
EXIT_NO_RESULT = 125


class VmError(Exception):
    """No exit code came from the guest: it could not be started, or it died."""

    exit_code = EXIT_NO_RESULT


class UsageError(VmError):
    """The command line makes no sense."""

    exit_code = EXIT_USAGE


class GuestTimeoutError(VmError):
    """The command did not end in time."""

    exit_code = EXIT_TIMEOUT
