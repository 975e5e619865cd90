"""When a busy server looks, sleeps, and lets others run.

Waking up from a sleep costs several times what answering a command costs. While commands come fast,
a server therefore looks for the next one for about as long as a sleep would cost, before it sleeps.
That is never more than twice the best that could be done, whenever the command comes.

Both limits follow from what a turn of the trio loop costs, which is measured: 2 us on a common
machine, 70 us on an emulated one.
"""

from __future__ import annotations

import os
import time

import trio

from hybrid.block.ring import Ring

_LOOK_NS = 50_000
"""What a sleep costs at the least: the kernel needs 20 us or more to wake us."""
_LOOK_COSTS = 6
"""What a sleep costs at the least, in turns of the loop."""
_HOT_FACTOR = 3
"""A command that came within so many times the looking time lets us look for the next one."""
_TURN_NS = 300_000
"""How long other tasks (fetches, the control socket) may have to wait for their turn."""
_TURN_COSTS = 20
"""... but no less than so many turns of the loop cost: more must be done than to give turns."""
_SAMPLES = 20

now = time.perf_counter_ns


class Pacing:
    """All times are nanoseconds of ``now()``."""

    def __init__(self, look_ns: int | None) -> None:
        """``look_ns``: how long to look before sleeping; 0 never, None as measured."""
        self.look_ns = look_ns or 0
        self._measures_look = look_ns is None
        self.turn_at = 0
        """When others must get their turn."""
        self._turn_ns = _TURN_NS
        self._is_hot = False
        """Whether the last command came so fast that looking for the next one pays."""
        self._idle_since = 0

    async def measure(self) -> None:
        """Find out what a turn of the trio loop costs here."""
        costs = []
        for _ in range(_SAMPLES):
            start = now()
            await trio.lowlevel.checkpoint()
            costs.append(now() - start)
        self._turn_ns = max(_TURN_NS, _TURN_COSTS * min(costs))
        self.turn_at = now() + self._turn_ns
        # On a single core the kernel's side could not go on while we look.
        if self._measures_look and len(os.sched_getaffinity(0)) > 1:
            self.look_ns = max(_LOOK_NS, _LOOK_COSTS * min(costs))

    async def give_turn(self) -> None:
        """Let other tasks run."""
        await trio.lowlevel.checkpoint()
        self.turn_at = now() + self._turn_ns

    def look(self, ring: Ring) -> bool:
        """Whether there is a new command, or comes while it pays to look for one."""
        self._idle_since = now()
        until = self._idle_since + (self.look_ns if self._is_hot else 0)
        while not ring.has_new:
            if now() >= until:
                return False
        return True

    def woken(self) -> None:
        """The end of a sleep that began when ``look`` had found nothing."""
        moment = now()
        self.turn_at = moment + self._turn_ns
        self._is_hot = moment - self._idle_since < _HOT_FACTOR * self.look_ns
