"""1,000 idle connections, 200 slow readers and 100 slow bodies at the HTTP door, and what becomes of everybody else.

In turn, a while without the crowd (bench/slow.py) and a while with it, longer than the door has patience: warm runs
over the control socket and health checks over new connections, so many a second, in windows. A row is the p99 of a
window, the median over the windows; memory is the most that daemon and door ever had, added up.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from bench import peers
from bench.clients import HttpClient, LineClient
from bench.control import request
from bench.measure import Row, milliseconds, p99, paced_s, times, verdict
from bench.slow import HEALTH
from orpheusd.process.claims import take_short_turns
from tests.daemon import Daemon, command

CROWD = {"idle": 1000, "readers": 200, "bodies": 100}
RUNS_PER_S, CHECKS_PER_S = 200, 100
MOST_S, MOST_TIMES_ALONE, MOST_MB = 0.1, 2.0, 400
#: Some of them are on their way back at any moment.
LEAST_THERE = 0.9
COME_TIMEOUT_S = 60.0
MB = 1024 * 1024


class Windows(NamedTuple):
    """The p99 of each window, of runs and of health checks."""

    runs: list[float]
    checks: list[float]


def rows(quick: bool) -> Iterator[Row]:
    rounds, alone, beside, window_s = (1, 1, 1, 1.0) if quick else (3, 2, 5, 5.0)
    take_short_turns()  # what the caller itself waits for a processor is not to be counted
    with ExitStack() as stack:
        orpheus = stack.enter_context(peers.daemon(peers.AGENTS / "echo", peers.AGENTS / "lengthy"))
        line = LineClient(orpheus.control_socket)
        stack.callback(line.close)
        quiet_mb = _most_resident_mb(orpheus)
        without: list[Windows] = []
        within: list[Windows] = []
        there: list[dict[str, int]] = []
        for _ in range(rounds):
            without.append(_measured(orpheus, line, alone, window_s))
            with _crowd(_port(orpheus), there) as look:
                within.append(_measured(orpheus, line, beside, window_s, look))
        most_mb = _most_resident_mb(orpheus)
        assert "a front door ended" not in orpheus.log, orpheus.log
    least = {kind: min(look[kind] for look in there) for kind in CROWD}
    yield Row("the crowd, at the least", ", ".join(f"{least[kind]:,} {kind}" for kind in CROWD),
              f"{there[-1]['again']:,} came again", budget=", ".join(f"{CROWD[kind]:,} {kind}" for kind in CROWD),
              verdict=verdict(all(least[kind] >= LEAST_THERE * CROWD[kind] for kind in CROWD)))
    health, calm = _medians(within, "checks"), _medians(without, "checks")
    yield Row("  /v1/health, a new connection each, p99", milliseconds(health), f"alone {milliseconds(calm)}",
              times(health / calm), f"< {milliseconds(MOST_S)}", verdict(health < MOST_S))
    yield Row("  daemon and door, most resident", f"{most_mb:,} MB", f"alone {quiet_mb:,} MB",
              times(most_mb / quiet_mb), f"< {MOST_MB} MB", verdict(most_mb < MOST_MB))
    ratio = statistics.median(statistics.median(one.runs) / statistics.median(other.runs)
                              for one, other in zip(within, without, strict=True))
    yield Row("  a warm run, control socket, p99", milliseconds(_medians(within, "runs")),
              f"alone {milliseconds(_medians(without, 'runs'))}", times(ratio), f"< {MOST_TIMES_ALONE:g} x alone",
              verdict(ratio < MOST_TIMES_ALONE))


class Look:
    """Asks the crowd how many it is, and notes that."""

    def __init__(self, process: "subprocess.Popen[str]", there: list[dict[str, int]]) -> None:
        self._process = process
        self._there = there

    def ask(self) -> dict[str, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        told: dict[str, int] = json.loads(self._process.stdout.readline())
        return told

    def note(self) -> None:
        self._there.append(self.ask())


@contextmanager
def _crowd(port: int, there: list[dict[str, int]]) -> Iterator[Look]:
    """From the moment at which nearly all of them are there."""
    argv = [sys.executable, "-m", "bench.slow", str(port), *map(str, CROWD.values())]
    with subprocess.Popen(argv, cwd=peers.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        look = Look(process, there)
        give_up_at = time.monotonic() + COME_TIMEOUT_S
        while any(number < LEAST_THERE * CROWD[kind] for kind, number in look.ask().items() if kind in CROWD):
            if time.monotonic() > give_up_at:
                process.kill()
                raise AssertionError(f"the crowd did not come within {COME_TIMEOUT_S} s")
            time.sleep(0.1)  # between two questions, until give_up_at: to ask costs the crowd its turn
        try:
            yield look
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _measured(orpheus: Daemon, line: LineClient, windows: int, window_s: float, look: Look | None = None) -> Windows:
    found, port, run = Windows([], []), _port(orpheus), request("one")
    for _ in range(windows):
        found.runs.append(p99(paced_s(lambda: line.call(run), RUNS_PER_S, window_s)))
        found.checks.append(p99(paced_s(lambda: _check(port), CHECKS_PER_S, window_s)))
        if look is not None:
            look.note()
    return found


def _check(port: int) -> None:
    client = HttpClient(port)
    try:
        client.call(HEALTH)
    finally:
        client.close()


def _medians(rounds: list[Windows], what: str) -> float:
    figures: list[float] = [figure for one in rounds for figure in getattr(one, what)]
    return statistics.median(figures)


def _port(orpheus: Daemon) -> int:
    port = urlsplit(orpheus.http).port
    assert isinstance(port, int)
    return port


def _most_resident_mb(orpheus: Daemon) -> int:
    """The most that each had at any time (proc(5), VmHWM), added up: at least what they had together."""
    ours = [psutil.Process(orpheus.pid), *(one for one in orpheus.family() if "orpheusd.doors.http" in command(one))]
    texts = [Path(f"/proc/{one.pid}/status").read_text() for one in ours]
    return sum(int(text.partition("VmHWM:")[2].split()[0]) * 1024 for text in texts) // MB
