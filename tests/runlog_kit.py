"""A real run log in a directory of the test's own, with what its callbacks said collected."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from orpheusd.runlog.log import RunLog
from orpheusd.runlog.queries import RunQueries
from orpheusd.runlog.rows import Ended, Queued, RunDetail, Started
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually

#: Everything is checked at open, however slow the machine.
THOROUGH = Settings(check_budget_s=30.0, reserve_bytes=4096)


class Log:
    """An open run log. Leaving the block closes it, whatever state it is in."""

    def __init__(self, folder: Path, settings: Settings = THOROUGH) -> None:
        self.path = folder / "runs.db"
        self.acknowledged: list[str] = []
        self.detached: list[str] = []
        self.started: list[str] = []
        self.failures: list[str] = []
        self.callback_threads: set[str] = set()
        self.log = RunLog.open(self.path, settings, self._committed, self.failures.append, self.detached.extend,
                               self.started.extend)
        self.queries = RunQueries(self.path)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None,
    ) -> None:  # fmt: skip
        self.log.close(10.0)

    def settle(self, count: int) -> None:
        """Wait until this many ends were acknowledged."""
        eventually(lambda: len(self.acknowledged) >= count or self.failures, 10.0, f"{count} ends to be acknowledged")
        assert not self.failures, self.failures

    def written(self) -> None:
        """Wait until nothing is pending."""
        eventually(lambda: not self.log.health()["pending_changes"], 10.0, "everything to be written")

    def show(self, run_id: str) -> RunDetail:
        detail = self.queries.show(run_id)
        assert detail is not None, f"{run_id} is not in the log"
        return detail

    def _committed(self, run_ids: list[str]) -> None:
        self.callback_threads.add(threading.current_thread().name)
        self.acknowledged.extend(run_ids)


def queued(run_id: str, **changes: Any) -> Queued:
    whole = Queued(run_id, "my-agent", "user-1", "http", "uid 0", time.time(), b'{"query":"step 1"}')
    return whole._replace(**changes)


def started(run_id: str, **changes: Any) -> Started:
    return Started(run_id, 3, "w-1-1", "warm", 2, time.time())._replace(**changes)


def ended(run_id: str, **changes: Any) -> Ended:
    return Ended(run_id, "completed", "", time.time(), 1234, b'{"turn":2}')._replace(**changes)


def whole_run(log: RunLog, run_id: str, **end: Any) -> None:
    assert log.queued(queued(run_id))
    log.started(started(run_id))
    log.ended(ended(run_id, **end))


def fill(folder: Path, runs: int, settings: Settings = THOROUGH, at_a_time: int = 10) -> None:
    """A log with `runs` ended runs r-0, r-1, … in a commit for every few, closed again."""
    with Log(folder, settings) as log:
        for first in range(0, runs, at_a_time):
            for number in range(first, min(runs, first + at_a_time)):
                whole_run(log.log, f"r-{number}")
            log.settle(min(runs, first + at_a_time))
