"""Forking the server off ``hybrid mount``: everything is imported already, so it starts at once."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

import trio

from hybrid.errors import EXIT_BUG
from hybrid.mount.channel import ServerEnd
from hybrid.mount.processes import ProcessIdentity, identify
from hybrid.mount.server import MountServer, ServerJob
from hybrid.mount.serving import preload

_OPEN_FILES = 8192
_LOG_BYTES = 1024 * 1024
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


def fork_server(job: ServerJob, *, foreground: bool) -> tuple[ProcessIdentity, socket.socket]:
    """Start the server. Call it with SIGINT and SIGTERM blocked, and outside any trio run.

    Returns the server, and the parent's end of the channel to it. With ``foreground`` the log goes
    to the terminal as well.
    """
    preload(job.record.mode)
    ours, theirs = socket.socketpair()
    log_fd = os.open(job.record.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    pid = os.fork()
    if pid == 0:
        _run_child(job, theirs, log_fd, foreground)
    theirs.close()
    os.close(log_fd)
    return identify(pid), ours


def _run_child(job: ServerJob, channel: socket.socket, log_fd: int, foreground: bool) -> NoReturn:
    code = EXIT_BUG
    try:
        terminal = os.dup(2) if foreground else -1
        _become_daemon(log_fd, keep={channel.fileno(), terminal})
        # A crash in compiled code then leaves a traceback in the log.
        faulthandler.enable(2)
        _log_to_file(job, terminal)
        trio.run(_serve, job, channel)
        code = 0
    except BaseException as error:
        logger.exception("the server failed")
        # The traceback of a nursery does not end with the reason, and the parent shows one line.
        for cause in _causes(error):
            logger.critical("%s: %s", type(cause).__name__, cause)
    finally:
        # Nothing of the parent, such as exit handlers and buffered output, may run twice.
        logging.shutdown()
        os._exit(code)


def _causes(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for part in error.exceptions:
        yield from _causes(part)


async def _serve(job: ServerJob, channel: socket.socket) -> None:
    async with trio.SocketStream(trio.socket.from_stdlib_socket(channel)) as stream:
        await MountServer(job, ServerEnd(stream)).run()


def _become_daemon(log_fd: int, keep: set[int]) -> None:
    os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    # A descriptor that we inherited, a shell's pipe say, would stay open as long as the mount.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    _raise_open_files()


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to_file(job: ServerJob, terminal: int) -> None:
    """The log is capped: a reader that meets errors for days must not fill /run."""
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    formatter = logging.Formatter(_LOG_FORMAT)
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(job.record.log, maxBytes=_LOG_BYTES, backupCount=1)
    ]
    if job.common_log is not None:
        # Without it the mount is as good: the trouble is told in the mount's own log.
        try:
            handlers.append(logging.handlers.WatchedFileHandler(job.common_log))
        except OSError as error:
            print(f"cannot write the log {job.common_log}: {error.strerror}", file=sys.stderr)
    if terminal >= 0:
        handlers.append(_TerminalHandler(open(terminal, "w", buffering=1)))  # noqa: SIM115
    for handler in handlers:
        handler.setFormatter(formatter)
    # People who ask for more with -v get it, whatever the configuration says.
    verbose = logging.getLogger("hybrid").isEnabledFor(logging.DEBUG)
    for name in ("hybrid", "pyfuse3", "py.warnings"):
        named = logging.getLogger(name)
        named.handlers[:] = handlers
        named.propagate = False
        level = logging.DEBUG if verbose else job.log_level
        # The FUSE library would tell of each request.
        named.setLevel(level if name == "hybrid" else max(level, logging.INFO))
    logging.captureWarnings(True)


class _TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Stops by itself when the terminal or pipe of a foreground mount has gone."""

    def handleError(self, record: logging.LogRecord) -> None:
        self.setLevel(logging.CRITICAL + 1)
