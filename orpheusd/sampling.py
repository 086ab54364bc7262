"""Looks at what each worker costs, one after another, and tells the core of those that have grown too much."""

import asyncio

from orpheusd.core.events import WorkerGrew
from orpheusd.engine import Engine
from orpheusd.process.causes import MB

#: Every worker is looked at about this often; one at a time, and no two sooner than LEAST_S after each other.
PERIOD_S, LEAST_S = 2.0, 0.05


class Sampling:
    """Invariant: between `start` and `stop` a timer is set."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at one worker, and again soon."""
        workers = self._engine.supervisor.pool.workers
        self._timer = asyncio.get_running_loop().call_later(max(PERIOD_S / max(len(workers), 1), LEAST_S), self.start)
        monitor = self._engine.processes.monitor
        id = monitor.sample_next(self._engine.now())
        sample = monitor.latest(id) if id is not None else None
        if id in workers and sample is not None and workers[id].outgrown(sample.rss_bytes / MB):
            self._engine.feed(WorkerGrew(id, sample.rss_bytes / MB))

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
