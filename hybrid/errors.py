"""The exception tree of hybrid, and the exit code that each branch has.

    HybridError             1   never raised itself; also: whoever read our output went away
      UsageError            2   the command line makes no sense (click uses 2 as well)
      ConfigError           3   a configuration or credential file is wrong
      NotFoundError         4   no such image, tag, blob, file or mount
      AuthError             5   credentials missing, wrong, or not allowed to read this
      NetworkError          6   a host cannot be reached, or answers nonsense
        CertificateError    6   ... because its certificate is not trusted
      FormatError           7   bytes that break the format: damaged or truncated
      UnsupportedError      8   a valid thing that hybrid cannot use (plain OCI image, TurboOCI)
      PermissionNeededError 9   the caller's rights do not suffice
      SystemSupportError   10   the machine lacks something: /dev/fuse, loop devices, a module
      BusyError            11   something is in use: a mount point, a mounted file system
      MountPointError      12   the mount point is missing or no directory
      StorageFullError     13   no space left for what must be written
      TimeoutExpiredError  14   a server process did not answer in time
      StorageFailedError   15   a disk of this machine failed to keep or to give back its data

Every error is one line for the user: what failed, where, and (``hint``) what to do about it.
Errors become errno only in the front ends (``hybrid.fuse``, ``hybrid.block``), and HTTP statuses
become errors only in ``hybrid.core.registry``. A bug is any other exception: exit code 70.
"""

from __future__ import annotations

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class HybridError(Exception):
    """What went wrong, in one line, with the remedy in ``hint`` (may be empty)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HybridError):
    exit_code = 2


class ConfigError(HybridError):
    exit_code = 3


class NotFoundError(HybridError):
    exit_code = 4


class AuthError(HybridError):
    exit_code = 5


class NetworkError(HybridError):
    exit_code = 6


class CertificateError(NetworkError):
    pass


class FormatError(HybridError):
    """Bytes that break a format. ``offset`` is where, in bytes of the file named in the message."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str = "", offset: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class UnsupportedError(HybridError):
    exit_code = 8


class PermissionNeededError(HybridError):
    exit_code = 9


class SystemSupportError(HybridError):
    exit_code = 10


class BusyError(HybridError):
    exit_code = 11


class MountPointError(HybridError):
    exit_code = 12


class StorageFullError(HybridError):
    exit_code = 13


class TimeoutExpiredError(HybridError):
    exit_code = 14


class StorageFailedError(HybridError):
    exit_code = 15


def encode_error(error: HybridError) -> dict[str, str]:
    """An error for another process, as JSON has it."""
    known = next(kind for kind in type(error).__mro__ if globals().get(kind.__name__) is kind)
    return {"type": known.__name__, "message": error.message, "hint": error.hint}


def decode_error(described: dict[str, str]) -> HybridError:
    """The same class as it was, or the nearest of its bases that is defined here."""
    found: type[HybridError] = globals()[described["type"]]
    return found(described["message"], hint=described["hint"])
