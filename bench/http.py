"""The HTTP door: one in flight beside bare Hypercorn + Starlette, 32 in flight beside HAProxy + uvicorn.

The uvicorn of the budget is what `pip install uvicorn` gives; `uvicorn[standard]` is shown for information. The rows
of processor time say what a machine that does something else as well cannot blur.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from bench import haproxy, machine, peers
from bench.clients import HttpClient, http_request
from bench.echo_app import PATH
from bench.measure import Row, median_s, microseconds, paired, per_second, times, unavailable, verdict
from tests.daemon import free_port

BODY = b'{"input": {"query": "step 1"}}'
MOST_S_ABOVE_BARE = 200e-6
IN_FLIGHT = 32
#: Of bench/run.lua.
SESSIONS = 32
WRK_TIMEOUT_S = 60


def rows(quick: bool) -> Iterator[Row]:
    with peers.daemon(peers.AGENTS / "echo") as orpheus:
        port = urlsplit(orpheus.http).port
        assert isinstance(port, int)
        yield _alone(port, quick)
        for kind in haproxy.KINDS:
            try:
                yield from _crowd(kind, port, orpheus.pid, quick)
            except machine.Missing as error:
                yield unavailable(_what(kind), _budget(kind), str(error))


def _alone(port: int, quick: bool) -> Row:
    rounds, calls = (4, 100) if quick else (20, 300)
    bare_port = free_port()
    with ExitStack() as stack:
        stack.enter_context(peers.process([sys.executable, "-m", "bench.echo_app", str(bare_port)], bare_port))
        ours, bare = HttpClient(port), HttpClient(bare_port)
        stack.callback(ours.close)
        stack.callback(bare.close)
        ours_line, bare_line = (http_request(each, PATH, BODY, "user-123") for each in (port, bare_port))
        pair = paired(lambda: median_s(calls, lambda: ours.call(ours_line)),
                      lambda: median_s(calls, lambda: bare.call(bare_line)), rounds)
    above = pair.ours - pair.beside
    return Row("HTTP, one in flight, p50", microseconds(pair.ours),
               f"bare Hypercorn + Starlette {microseconds(pair.beside)}", f"+{microseconds(above)}",
               f"≤ bare + {microseconds(MOST_S_ABOVE_BARE)}", verdict(above <= MOST_S_ABOVE_BARE))


def _crowd(kind: str, port: int, daemon: int, quick: bool) -> Iterator[Row]:
    rounds, seconds = (2, 1) if quick else (7, 3)
    wrk = machine.command("wrk", "wrk")
    others = set(psutil.Process().children())
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as directory, \
            haproxy.pinned_uvicorns(kind, Path(directory)) as front:
        ours = Load(wrk, port, seconds, _family(psutil.Process(daemon)))
        beside = Load(wrk, front, seconds, [each for child in psutil.Process().children() if child not in others
                                            for each in _family(child)])
        pair = paired(ours.rate, beside.rate, rounds)
        haproxy.check_pinned(Path(directory), SESSIONS)
    yield Row(_what(kind), per_second(pair.ours), f"HAProxy + 2 {kind} {per_second(pair.beside)}", times(pair.ratio),
              _budget(kind), verdict(pair.ratio >= 1) if kind == haproxy.PLAIN else "")
    yield Row("  processor time each", microseconds(ours.spent_s()), microseconds(beside.spent_s()),
              times(ours.spent_s() / beside.spent_s()))


class Load:
    """A closed loop of `IN_FLIGHT` callers. Invariant: `_answered` requests took `_spent_s` of `_processes`' time."""

    def __init__(self, wrk: str, port: int, seconds: int, processes: list[psutil.Process]) -> None:
        self._argv = [wrk, "-t1", f"-c{IN_FLIGHT}", f"-d{seconds}s", "-s",
                      str(Path(__file__).resolve().parent / "run.lua"), f"http://127.0.0.1:{port}"]
        self._processes = processes
        self._answered = 0
        self._spent_s = 0.0

    def rate(self) -> float:
        """Answers a second. Raises AssertionError when one of them was not a 200."""
        before_s = self._used_s()
        said = subprocess.run(self._argv, capture_output=True, text=True, check=True, timeout=WRK_TIMEOUT_S).stdout
        self._spent_s += self._used_s() - before_s
        assert "Non-2xx" not in said and "Socket errors" not in said, said
        counted = re.search(r"(\d+) requests in", said)
        rate = re.search(r"Requests/sec:\s*([\d.]+)", said)
        assert counted is not None and rate is not None, said
        self._answered += int(counted[1])
        return float(rate[1])

    def spent_s(self) -> float:
        """Processor time of one request, in all processes that have a part in it."""
        return self._spent_s / self._answered

    def _used_s(self) -> float:
        return sum(used.user + used.system for used in (one.cpu_times() for one in self._processes))


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _what(kind: str) -> str:
    return f"HTTP, {IN_FLIGHT} in flight" + ("" if kind == haproxy.PLAIN else f", {kind}")


def _budget(kind: str) -> str:
    return f"≥ HAProxy + 2 {kind} (h11)" if kind == haproxy.PLAIN else "(for information)"
