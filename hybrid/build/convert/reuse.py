"""Layers that were converted earlier, and are at the destination or can be mounted there."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from hybrid.build.contract import ImageDestination
from hybrid.build.convert.memory import Memory, Remembered
from hybrid.build.convert.options import LayerName
from hybrid.build.convert.pipe import reason
from hybrid.core.byte_stream import BlobContent, ByteStream
from hybrid.core.reference import LayoutReference, RegistryReference

_JOBS = 8


class Reuse:
    """Asks the memory, then the destination, whose reference is ``ref``."""

    def __init__(
        self,
        memory: Memory,
        destination: ImageDestination,
        ref: RegistryReference | LayoutReference,
    ) -> None:
        self._memory = memory
        self._destination = destination
        self._ref = ref

    async def find(self, names: Sequence[LayerName]) -> list[tuple[Remembered, str]]:
        """The layers that need no work, from the bottom up to the first that does; with how they
        are there: ``present`` or ``mounted``.

        Only layers that were made one over the other are taken together.
        """
        known: list[Remembered] = []
        for name in names:
            found = self._memory.find(name.key)
            if found is None or found.parent != (known[-1].digest if known else ""):
                break
            known.append(found)
        how = [""] * len(known)
        waiting = iter(range(len(known)))

        async def work() -> None:
            for number in waiting:
                how[number] = await self._ask(known[number])

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(_JOBS, len(known))):
                    nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise reason(group) from None
        count = how.index("") if "" in how else len(how)
        return list(zip(known[:count], how[:count], strict=True))

    def origin_of(self, digest: str) -> RegistryReference | None:
        """Another repository of the destination's registry that has had a blob."""
        return next(iter(self._origins(digest)), None)

    def remember(self, key: str, layer: Remembered) -> None:
        """A layer was converted, and is at the destination."""
        self._memory.add(key, layer)
        self.seen(layer.digest)

    def seen(self, digest: str) -> None:
        """The destination has a blob."""
        if isinstance(self._ref, RegistryReference):
            self._memory.add_place(digest, self._ref)

    def _origins(self, digest: str) -> list[RegistryReference]:
        ref = self._ref
        if not isinstance(ref, RegistryReference):
            return []
        places = self._memory.places(digest, ref.api_host)
        return [RegistryReference(ref.host, place) for place in places if place != ref.repository]

    async def _ask(self, layer: Remembered) -> str:
        if await self._destination.has_blob(layer.digest, layer.size):
            return "present"
        for origin in self._origins(layer.digest):
            content = BlobContent(_never, layer.digest, layer.size, origin=origin)
            if await self._destination.mount_blob(content):
                self.seen(layer.digest)
                return "mounted"
        return ""


async def _never() -> ByteStream:
    raise AssertionError("a blob that is only mounted is not opened")
