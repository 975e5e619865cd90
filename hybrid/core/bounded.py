"""Work that the kernel may hold up for ever, done in a child process that can be given up.

umount2(2) waits for reads in flight, which a stopped server never answers, and /proc/PID/maps
waits for page faults on such a mount. A thread would not do: a process cannot even exit while one
of its threads hangs in the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

from hybrid.errors import HybridError, TimeoutExpiredError, decode_error, encode_error

_MAX_DESCRIPTOR = (1 << 31) - 1


class BoundedTask:
    """Runs ``work`` in a forked child at once. Its result must be JSON.

    An OSError of ``work`` is raised again in ``wait``, and so is a HybridError; any other exception
    becomes RuntimeError. The child has none of our descriptors.
    """

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self._received = b""
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(work, writer)
        os.close(writer)

    def wait(self, seconds: float) -> Any:
        """The result of the work. Raises TimeoutExpiredError if it takes longer than ``seconds``;
        then it goes on, and ``wait`` may be called again, or ``abandon``.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._reader], [], [], left)[0]:
                raise TimeoutExpiredError(f"{self.name} did not end within {seconds:g} seconds")
            part = os.read(self._reader, 1 << 16)
            if not part:
                return self._finish()
            self._received += part

    def abandon(self) -> None:
        """Leave the child to itself. It ends when the kernel lets it go, and init reaps it."""
        os.close(self._reader)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)

    def _finish(self) -> Any:
        os.close(self._reader)
        os.waitpid(self._pid, 0)
        answer = json.loads(self._received or b'{"bug": "the child process died"}')
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        if "error" in answer:
            raise decode_error(answer["error"])
        if "bug" in answer:
            raise RuntimeError(f"{self.name}: {answer['bug']}")
        return answer["result"]


def run_bounded(name: str, work: Callable[[], Any], seconds: float) -> Any:
    """``work`` in a child, given up after ``seconds`` with TimeoutExpiredError."""
    task = BoundedTask(name, work)
    try:
        return task.wait(seconds)
    except TimeoutExpiredError:
        task.abandon()
        raise


def _run_child(work: Callable[[], Any], writer: int) -> None:
    """Never returns: nothing of the parent (exit handlers, buffers) may run twice."""
    try:
        # Given up, it must not hold a pipe open whose reader waits for the end of our output.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        # Nor anything else: a socket's other end would wait for its last holder to go.
        os.closerange(3, writer)
        os.closerange(writer + 1, _MAX_DESCRIPTOR)
        try:
            answer = {"result": work()}
        except OSError as error:
            answer = {"errno": error.errno or 0}
        except HybridError as error:
            answer = {"error": encode_error(error)}
        except Exception as error:
            answer = {"bug": f"{type(error).__name__}: {error}"}
        rest = json.dumps(answer).encode()
        while rest:
            rest = rest[os.write(writer, rest) :]
    finally:
        os._exit(0)
