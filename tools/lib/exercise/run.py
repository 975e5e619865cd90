"""What happens next, and what is compared then. The seed decides all of it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from exercise.file import ExercisedFile
from exercise.image import Image
from exercise.model import Model

_SNAPSHOTS = 60
"""At most so many in a run: sealed layers count among the 255 of the disk."""
_KEPT = 25
_NAME = "exercised"


class Exercise:
    """One run. ``last`` are the last operations, and ``counts`` how often each kind came."""

    def __init__(self, image: Image, seed: int) -> None:
        self.last: deque[str] = deque(maxlen=_KEPT)
        self.counts: Counter[str] = Counter()
        self._image = image
        self._seed = seed
        self._numbers = random.Random()
        self._model = Model()
        self._file: ExercisedFile | None = None
        self._number = 0

    def run(self, goes_on: Callable[[int], bool]) -> None:
        """Until ``goes_on``, which gets the number of operations so far, says no.

        Raises Difference, OSError, CalledProcessError: what was wrong.
        """
        self._image.mount()
        try:
            self._open()
            while goes_on(self._number):
                self._number += 1
                self._do(self._next())
            self._do(self.remount)
        finally:
            self._close()
        self._image.unmount()
        self._image.check_file_system()

    def _next(self) -> Callable[[], str]:
        """Mostly an operation on the file, now and then one on the mount."""
        assert self._file
        # Anew each time: the size that a crash leaves depends on the kernel, and with it how many
        # numbers are drawn; what comes next must not.
        self._numbers.seed(f"{self._seed}/{self._number}")
        around: list[tuple[float, Callable[[], str]]] = [
            (0.3, self.snapshot), (0.3, self.remount), (0.5, self.crash),
        ]  # fmt: skip
        if self._image.mode == "tcmu":
            around.append((0.4, self.resume))
        plan = [*self._file.operations(), *around]
        (chosen,) = self._numbers.choices([what for _, what in plan], [rate for rate, _ in plan])
        return chosen

    def _do(self, operation: Callable[[], str]) -> None:
        name = operation.__name__
        # Known before it is tried: it may be the one that fails.
        self.last.append(f"{self._number}: {name} ...")
        self.last[-1] = f"{self._number}: {operation()}"
        self.counts[name] += 1

    def snapshot(self) -> str:
        """Seal the upper and go on; everything must be as before."""
        if self.counts["snapshot"] >= _SNAPSHOTS:
            return "no more snapshots"
        self._image.snapshot()
        self._compare("after a snapshot")
        return "snapshot"

    def remount(self) -> str:
        """An orderly end keeps all that was written, fsync or not."""
        self._close()
        self._image.unmount()
        self._image.mount()
        self._model.synchronised()
        self._open()
        self._compare("after an unmount")
        return "unmount, mount, compare all"

    def crash(self) -> str:
        """fsync, perhaps some more changes, kill -9: what was synchronised must be there."""
        assert self._file
        self._file.fsync()
        more = self._changes(self._numbers.choice((0, 0, 3)))
        self._image.kill()
        self._close()
        self._image.give_up()
        self._image.mount()
        self._open().recover()
        return f"fsync{more}, kill -9, unmount --lazy, mount, compare what was synchronised"

    def resume(self) -> str:
        """kill -9 where the disk stays: nothing is lost at all."""
        more = self._changes(2)
        self._image.kill()
        self._image.resume()
        self._compare("after resume")
        return f"kill -9 after{more}, resume, compare all"

    def _changes(self, count: int) -> str:
        assert self._file
        kinds = (self._file.write, self._file.write_mapped, self._file.truncate, self._file.punch)
        return "".join(f", {self._numbers.choice(kinds)()}" for _ in range(count))

    def _compare(self, what: str) -> None:
        assert self._file
        self._file.fsync()
        self._file.compare_whole(what)

    def _open(self) -> ExercisedFile:
        path: Path = self._image.mountpoint / _NAME
        self._file = ExercisedFile(path, self._model, self._numbers)
        return self._file

    def _close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
