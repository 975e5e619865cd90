"""The guest's output, passed on as it comes.

The guest's own end cannot be told from a crash, and what it has written last may still be under way
then. So its script ends each stream with a mark that no command can foresee, and the exit status.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from typing import BinaryIO

_CHUNK = 1 << 16


class MarkedStream:
    """Splits a stream into what is to be passed on and the status behind the mark."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._held = b""
        self.status: int | None = None
        """The exit status, when the mark has come."""

    def feed(self, data: bytes) -> bytes:
        """What of the data so far is known to be output. Nothing is, after the mark."""
        if self.status is not None:
            return b""
        self._held += data
        output, mark, after = self._held.partition(self._mark)
        if mark:
            digits, newline, _ = after.partition(b"\n")
            self._held = mark + after
            self.status = int(digits) if newline else None
            return output
        held = _overlap(self._held, self._mark)
        output = self._held[: len(self._held) - held]
        self._held = self._held[len(output) :]
        return output

    def rest(self) -> bytes:
        """What was held back, when the stream ends without its mark."""
        held, self._held = self._held, b""
        return held if self.status is None else b""


def _overlap(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of the data may be the beginning of the mark."""
    for length in range(min(len(data), len(mark) - 1), 0, -1):
        if mark.startswith(data[-length:]):
            return length
    return 0


class Pump(threading.Thread):
    """Copies a marked stream from a pipe to a file descriptor until it ends; then tells by a queue.

    A thread, because both block. It closes the pipe.
    """

    def __init__(
        self, source: int, target: int, mark: bytes, ended: queue.SimpleQueue[Pump]
    ) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._target = target
        self._stream = MarkedStream(mark)
        self._ended = ended
        self.error: OSError | None = None
        """Why the output could not be written."""
        self.is_silent = True
        """Whether nothing has come."""

    @property
    def status(self) -> int | None:
        """The exit status; None if the guest died before it could tell."""
        return self._stream.status

    def run(self) -> None:
        """Copy."""
        try:
            while self.status is None and (data := os.read(self._source, _CHUNK)):
                self.is_silent = False
                self._write(self._stream.feed(data))
            self._write(self._stream.rest())
        except OSError as error:
            self.error = error
        finally:
            os.close(self._source)
            self._ended.put(self)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]


class Console(threading.Thread):
    """Reads the kernel's messages, and qemu's: keeps the last of them, may write all to a file.

    A thread that closes the pipe, as a Pump is.
    """

    LINES = 25
    """How many lines are kept."""
    _LINE_LIMIT = 4096

    def __init__(self, source: int, file: BinaryIO | None) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._file = file
        self._lines: deque[bytes] = deque(maxlen=self.LINES)
        self._line = b""

    def run(self) -> None:
        """Read until qemu is gone."""
        while data := os.read(self._source, _CHUNK):
            *lines, line = (self._line + data).split(b"\n")
            self._lines.extend(lines)
            self._line = line[-self._LINE_LIMIT :]
            self._save(data)
        os.close(self._source)

    def _save(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError:
            # A full disk must not stop the guest, nor hide how it ends.
            self._file = None

    def tail(self) -> list[str]:
        """The last lines, safe to print."""
        lines = [*self._lines, self._line]
        text = (line.decode(errors="replace").rstrip() for line in lines)
        return ["".join(c if c.isprintable() else " " for c in line) for line in text if line]
