"""The HTTP door: one in flight beside bare Hypercorn + Starlette, 32 in flight beside HAProxy + uvicorn."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from bench import haproxy, machine, peers
from bench.clients import HttpClient, http_request
from bench.echo_app import PATH
from bench.measure import Row, median_s, microseconds, paired, per_second, times, unavailable, verdict
from tests.daemon import free_port

BODY = b'{"input": {"query": "step 1"}}'
MOST_S_ABOVE_BARE = 200e-6
IN_FLIGHT = 32
WRK_TIMEOUT_S = 60


def rows(quick: bool) -> Iterator[Row]:
    with peers.daemon(peers.AGENTS / "echo") as orpheus:
        port = urlsplit(orpheus.http).port
        assert isinstance(port, int)
        yield _alone(port, quick)
        for kind in haproxy.KINDS:
            what, budget = f"HTTP, {IN_FLIGHT} in flight", f"≥ HAProxy + 2 {kind}"
            try:
                yield _crowd(what, budget, kind, port, quick)
            except machine.Missing as error:
                yield unavailable(what, budget, str(error))


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


def _crowd(what: str, budget: str, kind: str, port: int, quick: bool) -> Row:
    rounds, seconds = (2, 1) if quick else (7, 3)
    wrk = machine.command("wrk", "wrk")
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as directory, \
            haproxy.pinned_uvicorns(kind, Path(directory)) as front:
        pair = paired(lambda: _wrk(wrk, port, seconds), lambda: _wrk(wrk, front, seconds), rounds)
    return Row(what, per_second(pair.ours), f"HAProxy + 2 {kind} {per_second(pair.beside)}", times(pair.ratio),
               budget, verdict(pair.ratio >= 1))


def _wrk(wrk: str, port: int, seconds: int) -> float:
    """Answers a second. Raises AssertionError when one of them was not a 200."""
    script = str(Path(__file__).resolve().parent / "run.lua")
    said = subprocess.run(
        [wrk, "-t1", f"-c{IN_FLIGHT}", f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{port}"],
        capture_output=True, text=True, check=True, timeout=WRK_TIMEOUT_S).stdout
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    rate = re.search(r"Requests/sec:\s*([\d.]+)", said)
    assert rate is not None, said
    return float(rate.group(1))
