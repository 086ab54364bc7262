"""How many workers an agent wants, and which it can spare. Driven by events: demand is what is running and what
could run."""

from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING

from orpheusd.core.worker import ProcessState, Worker

if TYPE_CHECKING:
    from orpheusd.core.agent import Settings


def wanted_workers(demand: int, settings: "Settings") -> int:
    """Workers for `demand` runs at once, within the agent's bounds."""
    by_demand = ceil(demand / (settings.scale_up_threshold * settings.concurrency))
    return max(settings.min_workers, min(by_demand, settings.max_workers))


def cheapest(workers: Iterable[Worker]) -> list[Worker]:
    """Of `workers`, those that may be let go, the cheapest to lose first: dying ones, then idle ones without sessions,
    then those whose sessions are all saved, then the coldest. One with a run, or that somebody waits for, stays."""
    workers = list(workers)
    dying = [worker for worker in workers if worker.state is ProcessState.KILLING]
    free = [w for w in workers if w.state is ProcessState.READY and not w.runs and not w.lanes]
    return dying + sorted(free, key=loss)


def loss(worker: Worker) -> tuple[bool, bool, bool, float]:
    """What it costs to let the worker go, to compare: a run, sessions, memory that is not saved, recent use."""
    return bool(worker.runs), worker.sessions > 0, worker.sessions > worker.saved, worker.idle_since


class Lull:
    """The time since which an agent has needed fewer workers than it has.

    Invariant: `since` is None, or the moment from which demand has stayed below `scale_down_threshold` of
    what the workers can carry; `peak` is the highest demand seen from then on.
    """

    __slots__ = ("peak", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        self.peak = 0

    def observe(self, demand: int, workers: int, settings: "Settings", now: float) -> None:
        low = demand < settings.scale_down_threshold * workers * settings.concurrency
        if workers <= settings.min_workers or not low:
            self.since = None
        elif self.since is None:
            self.since = now
            self.peak = demand
        elif demand > self.peak:
            self.peak = demand

    def over(self, settings: "Settings", now: float) -> bool:
        """Whether it has lasted long enough to let workers go."""
        return self.since is not None and now >= self.since + settings.idle_timeout_s
