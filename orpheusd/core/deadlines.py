"""The one timer of the core. It may wake its owner early, never late.

An owner (a worker, a lane, an agent …) says the next time at which it wants to look at itself. Wanting it
later costs nothing: the earlier wake-up stands, and the owner looks, finds nothing due and asks again. So a
busy worker whose runs all have the same timeout costs one entry a timeout, not one a run.
"""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush

#: So many stale entries are not worth the work of throwing them out.
FEW = 64


class Deadlines:
    """Invariant: every owner in `_armed` has an entry in `_heap` at that time; other entries are stale, and about
    as many as there are owners at most."""

    __slots__ = ("_armed", "_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._armed: dict[Hashable, float] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, owner: Hashable, at: float) -> None:
        """Wake `owner` at `at` or before."""
        armed = self._armed.get(owner)
        if armed is None or at < armed:
            self._armed[owner] = at
            self._count += 1
            heappush(self._heap, (at, self._count, owner))
            if len(self._heap) > 2 * len(self._armed) + FEW:
                self._throw_out()

    def forget(self, owner: Hashable) -> None:
        self._armed.pop(owner, None)

    def next(self) -> float | None:
        """The time of the first wake-up, or None."""
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Hashable]:
        """The owners whose time has come, each once; they are no longer armed."""
        owners: list[Hashable] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, owner = heappop(self._heap)
            if self._armed.get(owner) == at:
                del self._armed[owner]
                owners.append(owner)
        return owners

    def _throw_out(self) -> None:
        """Keep no stale entry. Each has paid for this by being pushed."""
        self._heap = [(at, count, owner) for count, (owner, at) in enumerate(self._armed.items(), self._count)]
        self._count += len(self._heap)
        heapify(self._heap)
