"""Processes, known by pid and start time, so that a reused pid is never taken for ours."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class ProcessIdentity:
    """``start_time`` is in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    start_time: int

    def state(self) -> str:
        """The kernel's letter (R, S, D, T, ...), or "" if the process has ended."""
        fields = _stat_fields(self.pid)
        if not fields or int(fields[19]) != self.start_time or fields[0] in "ZX":
            return ""
        return fields[0]

    def is_alive(self) -> bool:
        return self.state() != ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process; nothing happens if it has ended."""
        if not self.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # The pidfd pins the process, so the check and the signal mean the same one.
                if self.is_alive():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def wait_gone(self, seconds: float) -> bool:
        """Whether the process has ended within ``seconds``."""
        if not self.is_alive():
            return True
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if self.is_alive():
                poller = select.poll()
                poller.register(descriptor, select.POLLIN)
                poller.poll(seconds * 1000)
            return not self.is_alive()
        finally:
            os.close(descriptor)


def identify(pid: int) -> ProcessIdentity:
    """The identity of a process that runs now."""
    fields = _stat_fields(pid)
    if not fields:
        raise ProcessLookupError(pid)
    return ProcessIdentity(pid, int(fields[19]))


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from "state" (field 3) on; empty if there is no such process."""
    if pid <= 0:
        return []
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    # The command in parentheses may hold spaces and parentheses itself.
    return text.rpartition(")")[2].split()


def process_state(pid: int) -> str:
    """The kernel's letter for the state of a process, "" if there is none."""
    return next(iter(_stat_fields(pid)), "")


def command_name(pid: int) -> str:
    """Name of the program, "?" if unknown. (/proc/PID/cmdline could block on a dead mount.)"""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask ``condition`` until it holds or ``seconds`` have passed; the last answer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
