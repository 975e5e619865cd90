"""Back-off on a virtual clock: no test here takes real time."""

from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
from trio.testing import MockClock

from hybrid.core.retry import (
    PROGRESS_BYTES,
    Patience,
    RetryPolicy,
    TransientError,
    parse_retry_after,
    with_patience,
    with_retries,
)
from hybrid.errors import CertificateError, NetworkError, NotFoundError

POLICY = RetryPolicy(budget=30.0, first_pause=0.1, longest_pause=5.0)
NOON = 1_700_000_000.0


class Attempts:
    """Fails as told (None: succeeds), and notes when it was called, in virtual seconds."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(trio.current_time())
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if outcome is not None:
            raise outcome
        return "done"

    async def once(self, patience: Patience) -> str:
        return await self()

    async def run(self, policy: RetryPolicy = POLICY) -> str:
        return await with_retries(self, policy, Random(1), "the thing")

    @property
    def pauses(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.times, self.times[1:], strict=False)]


def passing(retry_after: float | None = None) -> TransientError:
    return TransientError(NetworkError("it hiccups", hint="wait"), retry_after)


async def test_pauses_double_up_to_the_longest(autojump_clock: MockClock) -> None:
    attempts = Attempts(*[passing()] * 9, None)
    assert await attempts.run() == "done"
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    for pause, limit in zip(attempts.pauses, longest, strict=True):
        assert limit / 2 <= pause <= limit


async def test_the_budget_ends_it_with_the_last_reason(autojump_clock: MockClock) -> None:
    attempts = Attempts(passing())
    with pytest.raises(NetworkError, match="it hiccups") as caught:
        await attempts.run()
    assert trio.current_time() - attempts.times[0] <= POLICY.budget
    assert caught.value.hint == f"wait; tried {len(attempts.times)} times"
    assert len(attempts.times) > 5


async def test_other_errors_pass_at_once(autojump_clock: MockClock) -> None:
    attempts = Attempts(NotFoundError("gone"))
    with pytest.raises(NotFoundError):
        await attempts.run()
    assert len(attempts.times) == 1


async def test_the_kind_of_error_is_kept(autojump_clock: MockClock) -> None:
    attempts = Attempts(TransientError(CertificateError("expired")))
    with pytest.raises(CertificateError):
        await attempts.run()


async def test_retry_after_is_waited_for(autojump_clock: MockClock) -> None:
    attempts = Attempts(passing(7.0), None)
    assert await attempts.run() == "done"
    assert attempts.pauses == [pytest.approx(7.0)]


async def test_a_pause_beyond_the_budget_is_not_begun(autojump_clock: MockClock) -> None:
    attempts = Attempts(passing(3600.0))
    with pytest.raises(NetworkError, match="asks to wait 3600 s"):
        await attempts.run()
    assert trio.current_time() == attempts.times[0]


async def test_a_hanging_attempt_is_cut(autojump_clock: MockClock) -> None:
    with pytest.raises(NetworkError, match="the thing: no answer within 30 s"):
        await with_retries(trio.sleep_forever, POLICY, Random(1), "the thing")


async def test_cancellation_from_outside_passes(autojump_clock: MockClock) -> None:
    attempts = Attempts(passing())
    with trio.move_on_after(1.0) as scope:
        await attempts.run()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 00:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("9" * 30, None),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, NOON) == expected


# -- something long: the budget begins anew with progress ------------------------------------------


async def patiently(attempt: Callable[[Patience], Awaitable[str]], most_attempts: int = 5) -> str:
    return await with_patience(attempt, POLICY, Random(1), "the thing", most_attempts)


async def test_progress_extends_the_budget(autojump_clock: MockClock) -> None:
    async def slow(patience: Patience) -> str:
        for _ in range(100):
            await trio.sleep(20.0)
            patience.progress(PROGRESS_BYTES)
        return "done"

    assert await patiently(slow) == "done"
    assert trio.current_time() == pytest.approx(2000.0, abs=1.0)


async def test_a_trickle_is_no_progress(autojump_clock: MockClock) -> None:
    async def trickle(patience: Patience) -> str:
        while True:
            await trio.sleep(1.0)
            patience.progress(PROGRESS_BYTES // 100)

    start = trio.current_time()
    with pytest.raises(NetworkError, match="no progress for 30 s"):
        await patiently(trickle)
    assert trio.current_time() - start == pytest.approx(POLICY.budget)


async def test_attempts_are_counted_whatever_their_progress(autojump_clock: MockClock) -> None:
    times = 0

    async def breaks(patience: Patience) -> str:
        nonlocal times
        times += 1
        await trio.sleep(25.0)
        patience.progress(PROGRESS_BYTES)
        raise passing()

    with pytest.raises(NetworkError, match="it hiccups") as caught:
        await patiently(breaks, 4)
    assert times == 4
    assert caught.value.hint == "wait; tried 4 times"


async def test_waiting_for_something_else(autojump_clock: MockClock) -> None:
    async def waits(patience: Patience) -> str:
        patience.wait_for(500.0)
        await trio.sleep(520.0)
        patience.wait_for(float("inf"))
        await trio.sleep(5000.0)
        patience.wait_for(0.0)
        await trio.sleep(29.0)
        return "done"

    assert await patiently(waits) == "done"


async def test_patience_ends_with_the_last_reason(autojump_clock: MockClock) -> None:
    first = True

    async def hangs(patience: Patience) -> str:
        nonlocal first
        if first:
            first = False
            raise passing()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    with pytest.raises(NetworkError, match="it hiccups") as caught:
        await patiently(hangs)
    assert caught.value.hint == "wait; tried 2 times"
    with pytest.raises(NetworkError, match="it hiccups") as caught:
        await patiently(Attempts(passing(60.0)).once)
    assert "asks to wait 60 s" in caught.value.hint
