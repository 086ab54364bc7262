"""What a session costs: the time to dispatch a run, and memory, with 1, 1 000, 10 000 and 1 000 000 sessions.
And what an idle worker costs: the time to dispatch a run that any of them may have, with 10 and 1 000.

The supervisor alone, in a process of its own for each number, measured in turn. That is what `python -m bench.core
SESSIONS WORKERS` is: it makes the sessions, says how many bytes each took, and times a batch for each line it reads.
Without sessions its runs have none.
"""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import peers
from bench.measure import Row, microseconds, times, verdict
from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.pool import Policy
from orpheusd.core.supervisor import Supervisor

SESSIONS = (1, 1_000, 10_000, 1_000_000)
WORKERS = 2
FEW_IDLE, MANY_IDLE = 10, 1_000
BATCH = 2000
#: What the ratios are to: some sessions, as any agent has. A million are out of every cache.
BASELINE = 1_000
MOST_TIMES_BASELINE = 1.2
MOST_BYTES = 400


def rows(quick: bool) -> Iterator[Row]:
    sizes, rounds = (SESSIONS[:3], 5) if quick else (SESSIONS, 25)
    yield from _session_rows(sizes, rounds)
    yield from _worker_rows(rounds)


def _session_rows(sizes: tuple[int, ...], rounds: int) -> Iterator[Row]:
    bytes_each, taken = _measured({size: (size, WORKERS) for size in sizes}, rounds)
    baseline = statistics.median(taken[BASELINE])
    yield Row(f"core: a run requested, dispatched, ended, {BASELINE:,} sessions", microseconds(baseline))
    for size in sizes:
        if size == BASELINE:
            continue
        ratio = statistics.median(each / base for each, base in zip(taken[size], taken[BASELINE], strict=True))
        yield Row(f"core: the same, {size:,} sessions", microseconds(statistics.median(taken[size])),
                  f"{BASELINE:,} sessions {microseconds(baseline)}", times(ratio), f"≤ {MOST_TIMES_BASELINE:g}x",
                  verdict(ratio <= MOST_TIMES_BASELINE))
    largest = sizes[-1]
    yield Row(f"memory of an idle session, {largest:,} sessions", f"{bytes_each[largest]:,.0f} bytes",
              budget=f"≤ {MOST_BYTES} bytes", verdict=verdict(bytes_each[largest] <= MOST_BYTES))


def _worker_rows(rounds: int) -> Iterator[Row]:
    _, taken = _measured({idle: (0, idle) for idle in (FEW_IDLE, MANY_IDLE)}, rounds)
    few, many = (statistics.median(taken[idle]) for idle in (FEW_IDLE, MANY_IDLE))
    ratio = statistics.median(each / base for each, base in zip(taken[MANY_IDLE], taken[FEW_IDLE], strict=True))
    yield Row(f"core: a run without a session, {MANY_IDLE:,} idle workers", microseconds(many),
              f"{FEW_IDLE} idle workers {microseconds(few)}", times(ratio), f"≤ {MOST_TIMES_BASELINE:g}x",
              verdict(ratio <= MOST_TIMES_BASELINE))


def _measured(
    of: dict[int, tuple[int, int]], rounds: int
) -> tuple[dict[int, float], dict[int, list[float]]]:
    """The bytes a session took, and the seconds a run took in each round, with so many sessions and workers."""
    with ExitStack() as stack:
        processes = {key: stack.enter_context(_process(*numbers)) for key, numbers in of.items()}
        bytes_each = {key: float(_line(process)) for key, process in processes.items()}
        taken: dict[int, list[float]] = {key: [] for key in of}
        for _ in range(rounds):
            for key, process in processes.items():
                assert process.stdin is not None
                print(file=process.stdin, flush=True)
                taken[key].append(float(_line(process)))
    return bytes_each, taken


def _process(sessions: int, workers: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "bench.core", str(sessions), str(workers)], cwd=peers.ROOT,
                            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


class _Desk:
    """A supervisor with ready workers. Invariant: no run is under way between calls."""

    def __init__(self, workers: int) -> None:
        self._supervisor = Supervisor("bench", Policy(), lambda: 0.5)
        self._now = 0.0
        self._runs = 0
        settings = Settings(min_workers=workers, max_workers=workers, session_max=2 * SESSIONS[-1])
        self._feed(ev.AgentLoaded("echo", 1, settings))

    def run(self, session: str | None) -> None:
        """One run, from the request to the answer."""
        self._runs += 1
        run = f"r-{self._runs:016x}"
        dispatch = self._feed(ev.RunRequested(run, "echo", session))
        assert dispatch is not None, "the run was not dispatched at once"
        self._feed(ev.RunEnded(dispatch.worker, run, "completed", ""))

    def _feed(self, event: ev.Event) -> ef.Dispatch | None:
        """The dispatch that follows from `event`, if one does; orders about processes are carried out at once."""
        self._now += 1e-4
        dispatch = None
        for effect in self._supervisor.handle(event, self._now):
            if isinstance(effect, ef.Dispatch):
                dispatch = effect
            elif isinstance(effect, ef.StartTemplate):
                self._feed(ev.TemplateReady(effect.template))
            elif isinstance(effect, ef.ForkWorker):
                self._feed(ev.WorkerReady(effect.worker))
        return dispatch


def _serve(sessions: int, workers: int) -> None:
    desk = _Desk(workers)
    for _ in range(BATCH):
        desk.run("warm-up" if sessions else None)
    before = _resident_bytes()
    for number in range(sessions):
        desk.run(f"user-{number:07}")
    print((_resident_bytes() - before) / max(sessions, 1), flush=True)
    chosen = random.Random(1)
    for _ in sys.stdin:
        names = [f"user-{chosen.randrange(sessions):07}" if sessions else None for _ in range(BATCH)]
        begun = time.perf_counter()
        for name in names:
            desk.run(name)
        print((time.perf_counter() - begun) / BATCH, flush=True)


def _resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
