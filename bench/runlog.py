"""The run log beside plain SQLite: the same rows into the same table, same pragmas, on the same disk.

Plain SQLite gets row tuples that are ready and commits 256 of them at a time in one thread, with nothing else to do:
no acknowledgements, no checksums, no mark, no collapsing of three changes into a row. `python -m bench.runlog` shows
these rows alone.
"""

import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.measure import Row, median_s, microseconds, paired, per_second, show, times, verdict
from orpheusd.runlog.chain import genesis
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.rows import Ended, Queued, Started
from orpheusd.runlog.schema import COLUMNS, connect_writer, create
from orpheusd.runlog.settings import Settings

BATCH = 256
#: Runs in flight at a time: as many as a busy box has, and enough for full commits.
IN_FLIGHT = 4 * BATCH
#: No single commit takes longer, or the measurement is over.
TIMEOUT_S = 30.0
MOST_S_A_CALL = 3e-6
INPUT, RESULT = b'{"query":"step 1"}', b'{"turn":4}'


class Ours:
    """An open run log. Invariant: every run that was told is acknowledged before a method returns."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._acknowledged: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._log = RunLog.open(folder / "runs.db", settings, self._acknowledged.put, self._failed)
        self._next = 0

    def rate(self, runs: int) -> float:
        """Runs a second, each told in three calls and acknowledged once."""
        begun, told, done = time.perf_counter(), 0, 0
        while done < runs:
            while told < runs and told - done < IN_FLIGHT:
                self._tell()
                told += 1
            done += len(self._acknowledged.get(timeout=TIMEOUT_S))
        return runs / (time.perf_counter() - begun)

    def one(self) -> None:
        """One run, told and waited for."""
        self._tell()
        self._acknowledged.get(timeout=TIMEOUT_S)

    def call_s(self, runs: int) -> float:
        """The median time that the three calls of a run take in the thread that makes them, for one call."""
        figures: list[float] = []
        for number in range(runs):
            run_id, now = self._run_id(), time.time()
            queued = Queued(run_id, "echo", "one", "ctl", "uid 0", now, INPUT)
            started = Started(run_id, 1, "w-1-1", "warm", 3, now)
            ended = Ended(run_id, "completed", "", now, 900, RESULT)
            begun = time.perf_counter()
            self._log.queued(queued)
            self._log.started(started)
            self._log.ended(ended)
            figures.append((time.perf_counter() - begun) / 3)
            if number % IN_FLIGHT == IN_FLIGHT - 1:
                self._drain(IN_FLIGHT)
        self._drain(runs % IN_FLIGHT)
        return sorted(figures)[len(figures) // 2]

    def close(self) -> None:
        self._log.close(TIMEOUT_S)

    def _tell(self) -> None:
        run_id, now = self._run_id(), time.time()
        assert self._log.queued(Queued(run_id, "echo", "one", "ctl", "uid 0", now, INPUT)), self._log.health()
        self._log.started(Started(run_id, 1, "w-1-1", "warm", 3, now))
        self._log.ended(Ended(run_id, "completed", "", now, 900, RESULT))

    def _run_id(self) -> str:
        self._next += 1
        return f"r-{self._next:016x}"

    def _drain(self, runs: int) -> None:
        while runs > 0:
            runs -= len(self._acknowledged.get(timeout=TIMEOUT_S))

    def _failed(self, problem: str) -> None:
        raise AssertionError(problem)


class Plain:
    """The table of the run log, and nothing of its code but the pragmas."""

    _INSERT = f"INSERT INTO runs VALUES ({', '.join('?' * len(COLUMNS))})"

    def __init__(self, folder: Path) -> None:
        self._connection = connect_writer(folder / "plain.db")
        create(self._connection, b"", genesis(b"").digest)
        self._connection.execute("PRAGMA wal_autocheckpoint = 4000")
        self._next = 0

    def rate(self, runs: int) -> float:
        batches = [self._rows(min(BATCH, runs - first)) for first in range(0, runs, BATCH)]
        begun = time.perf_counter()
        for rows in batches:
            self._commit(rows)
        return runs / (time.perf_counter() - begun)

    def one(self) -> None:
        self._commit(self._rows(1))

    def close(self) -> None:
        self._connection.close()

    def _commit(self, rows: list[tuple[object, ...]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(self._INSERT, rows)
        self._connection.execute("COMMIT")

    def _rows(self, count: int) -> list[tuple[object, ...]]:
        first, self._next = self._next + 1, self._next + count
        now = time.time_ns() // 1000
        return [(
            seq, f"r-{seq:016x}", "echo", "one", "ctl", "uid 0", 0, None, now, len(INPUT), 1, "w-1-1", "warm", 3, now,
            "completed", "", now, 900, len(RESULT), None, None, None, None, INPUT, RESULT, 0, None, None, None,
        ) for seq in range(first, first + count)]  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    rounds, runs, calls = (3, 2_000, 50) if quick else (9, 20_000, 300)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runlog-", dir="/var/tmp")))
        for name in ("lingering", "at-once", "plain", "plain-one"):
            (folder / name).mkdir()
        ours, at_once = Ours(folder / "lingering", Settings()), Ours(folder / "at-once", Settings(durability="disk"))
        plain, plain_one = Plain(folder / "plain"), Plain(folder / "plain-one")
        for each in (ours, at_once, plain, plain_one):
            stack.callback(each.close)
        many = paired(lambda: ours.rate(runs), lambda: plain.rate(runs), rounds)
        yield Row("run log: runs a second, acknowledged", per_second(many.ours),
                  f"plain SQLite {per_second(many.beside)}", times(many.ratio))
        one = paired(lambda: median_s(calls, at_once.one), lambda: median_s(calls, plain_one.one), rounds)
        yield Row("run log: one run told and acknowledged, durability disk", microseconds(one.ours),
                  f"plain SQLite {microseconds(one.beside)}", times(one.ratio))
        call_s = ours.call_s(IN_FLIGHT if quick else 8 * IN_FLIGHT)
        yield Row("run log: one call in the event loop's thread", microseconds(call_s), "", "",
                  microseconds(MOST_S_A_CALL), verdict(call_s <= MOST_S_A_CALL))


if __name__ == "__main__":
    print(show(list(rows("--quick" in sys.argv))))
