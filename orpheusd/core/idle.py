"""The workers of one agent's pool that could take one more run now, and which of them a new session gets."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace

from orpheusd.core.deadlines import FEW
from orpheusd.core.worker import Worker


class Idle:
    """Workers by how little they would lose, without a look at all of them.

    Invariant: each worker has an entry in `_heap` that is no greater than it is now; other entries are stale, and
    about as many as there are workers at most. So a worker that gets more to hold costs nothing until it is the first,
    and one that gets less must be told of.
    """

    __slots__ = ("_count", "_heap", "_workers")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, str]] = []
        self._workers: dict[str, tuple[int, Worker]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[str]:
        """The ids, longest idle first."""
        return iter(self._workers)

    def __contains__(self, id: str) -> bool:
        return id in self._workers

    def add(self, worker: Worker) -> None:
        """It is idle from now on, if it was not."""
        if worker.id not in self._workers:
            self._count += 1
            self._workers[worker.id] = self._count, worker
            self._push(worker, self._count)

    def discard(self, worker: Worker) -> None:
        self._workers.pop(worker.id, None)

    def lightened(self, worker: Worker) -> None:
        """It has a session or a run less than before."""
        entry = self._workers.get(worker.id)
        if entry is not None:
            self._push(worker, entry[0])

    def best(self) -> Worker | None:
        """The worker with the fewest live sessions, then runs; of several, the one that has been idle longest."""
        heap = self._heap
        while heap:
            sessions, runs, number, id = heap[0]
            idle_as, worker = self._workers.get(id, (0, None))
            if worker is None or idle_as != number:
                heappop(heap)
            elif worker.sessions == sessions and len(worker.runs) == runs:
                return worker
            else:
                heapreplace(heap, (worker.sessions, len(worker.runs), number, id))
        return None

    def _push(self, worker: Worker, number: int) -> None:
        heappush(self._heap, (worker.sessions, len(worker.runs), number, worker.id))
        if len(self._heap) > 2 * len(self._workers) + FEW:
            self._throw_out()

    def _throw_out(self) -> None:
        """Keep no stale entry. Each has paid for this by being pushed."""
        self._heap = [
            (worker.sessions, len(worker.runs), number, id) for id, (number, worker) in self._workers.items()]
        heapify(self._heap)
