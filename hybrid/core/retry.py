"""Trying again, within a budget: exponential back-off with jitter, Retry-After honoured."""

from __future__ import annotations

import email.utils
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import trio

from hybrid.errors import NetworkError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROGRESS_BYTES = 1 << 16
"""So many bytes within the budget of time are progress."""


class TransientError(Exception):
    """An attempt failed in a way that may pass. ``error`` is for the user if it does not.

    ``retry_after`` is the pause that the server asked for, in seconds.
    """

    def __init__(self, error: NetworkError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


@dataclass(frozen=True)
class RetryPolicy:
    """All in seconds."""

    budget: float = 30.0
    first_pause: float = 0.1
    longest_pause: float = 5.0

    def pause(self, failures: int, random: Random) -> float:
        """The pause after that many failures: doubling, with jitter of half its length."""
        pause = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 60))
        return pause * random.uniform(0.5, 1.0)


async def with_retries(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, random: Random, what: str
) -> T:
    """Run ``attempt`` until it gives no TransientError, or the budget of time is used up.

    The budget cuts a hanging attempt too. Raises the last TransientError's own error then.
    """
    deadline = trio.current_time() + policy.budget
    failures = 0
    last = NetworkError(f"{what}: no answer within {policy.budget:g} s")
    while True:
        with trio.move_on_at(deadline) as scope:
            try:
                return await attempt()
            except TransientError as failure:
                failures += 1
                last, asked = failure.error, failure.retry_after
        if scope.cancelled_caught:
            raise _final(last, failures + 1)
        pause = max(policy.pause(failures, random), asked or 0.0)
        if trio.current_time() + pause >= deadline:
            raise _final(last, failures, asked if asked == pause else None)
        logger.info("%s; trying again in %.1f s", last.message, pause)
        await trio.sleep(pause)


class Patience:
    """When to give up something long: ``budget`` seconds after its last progress."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._scope = trio.CancelScope()
        self._gained = 0
        self.deadline = trio.current_time() + budget

    def attempt(self) -> trio.CancelScope:
        """The scope for the next attempt."""
        self._scope = trio.CancelScope(deadline=self.deadline)
        return self._scope

    def progress(self, count: int) -> None:
        """``count`` bytes went on their way. A trickle is no progress."""
        self._gained += count
        if self._gained >= PROGRESS_BYTES:
            self.wait_for(0.0)

    def wait_for(self, seconds: float) -> None:
        """Something else may take that long now, and then the budget begins anew."""
        self._gained = 0
        self.deadline = trio.current_time() + seconds + self._budget
        self._scope.deadline = self.deadline


async def with_patience(
    attempt: Callable[[Patience], Awaitable[T]],
    policy: RetryPolicy,
    random: Random,
    what: str,
    most_attempts: int,
) -> T:
    """As ``with_retries``, for something long: the budget of time begins anew with progress.

    So the attempts are bounded by their number too.
    """
    patience = Patience(policy.budget)
    failures = 0
    last = NetworkError(f"{what}: no progress for {policy.budget:g} s")
    while True:
        with patience.attempt() as scope:
            try:
                return await attempt(patience)
            except TransientError as failure:
                failures += 1
                last, asked = failure.error, failure.retry_after
        if scope.cancelled_caught:
            raise _final(last, failures + 1)
        pause = max(policy.pause(failures, random), asked or 0.0)
        if failures >= most_attempts or trio.current_time() + pause >= patience.deadline:
            raise _final(last, failures, asked if asked == pause else None)
        logger.info("%s; trying again in %.1f s", last.message, pause)
        await trio.sleep(pause)


def parse_retry_after(value: str | None, wall_clock_seconds: float) -> float | None:
    """Seconds to wait, from a Retry-After header (seconds or an HTTP date); None if unusable."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - wall_clock_seconds)
    except (ValueError, TypeError, OverflowError):
        return None


def _final(last: NetworkError, attempts: int, asked: float | None = None) -> NetworkError:
    tried = f"tried {attempts} time{'s' if attempts > 1 else ''}"
    if asked:
        tried += f"; the server asks to wait {asked:.0f} s"
    hint = f"{last.hint}; {tried}" if last.hint else tried
    return type(last)(last.message, hint=hint)
