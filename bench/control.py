"""The control socket beside the bare two-hop relay of the same bytes: one run in flight, and eight connections."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench import peers
from bench.clients import LineClient, closed_loop
from bench.measure import Row, median_s, microseconds, paired, per_second, times, verdict

CONNECTIONS = 8
MOST_TIMES_THE_RELAY = 3.0
LEAST_RUNS_PER_S = 10_000


def request(session: str) -> bytes:
    params = {"agent": "echo", "input": {"query": "step 1"}, "session_id": session}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "run", "params": params}).encode() + b"\n"


def rows(quick: bool) -> Iterator[Row]:
    rounds, calls, seconds = (4, 200, 0.3) if quick else (20, 500, 1.0)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-", dir="/tmp")))
        orpheus = stack.enter_context(peers.daemon(peers.AGENTS / "echo"))
        ours = LineClient(orpheus.control_socket)
        stack.callback(ours.close)
        answer = ours.call(request("one"))
        assert b'"result"' in answer, answer

        (directory / "answer").write_bytes(answer)
        front, back = directory / "front", directory / "back"
        stack.enter_context(peers.module("bench.relay", "echo", str(back), str(directory / "answer")))
        stack.enter_context(peers.module("bench.relay", "relay", str(front), str(back)))
        relay = LineClient(front)
        stack.callback(relay.close)

        line = request("one")
        one = paired(lambda: median_s(calls, lambda: ours.call(line)),
                     lambda: median_s(calls, lambda: relay.call(line)), rounds)
        yield Row("control socket, one in flight, p50", microseconds(one.ours),
                  f"bare relay {microseconds(one.beside)}", times(one.ratio),
                  f"≤ {MOST_TIMES_THE_RELAY:g} x relay", verdict(one.ratio <= MOST_TIMES_THE_RELAY))

        lines = [request(f"s{number}") for number in range(CONNECTIONS)]
        cpu = _Cpu([psutil.Process(orpheus.pid)], orpheus.family())
        many = paired(lambda: cpu.counted(closed_loop(orpheus.control_socket, lines, seconds), seconds),
                      lambda: closed_loop(front, lines, seconds), rounds // 2)
        yield Row(f"control socket, {CONNECTIONS} connections", per_second(many.ours),
                  f"bare relay {per_second(many.beside)}", times(many.ratio), f"≥ {LEAST_RUNS_PER_S:,}/s",
                  verdict(many.ours >= LEAST_RUNS_PER_S))
        yield Row("the same: processor time of one run", f"daemon {microseconds(cpu.per_run_s[0])}, "
                  f"door, template and workers {microseconds(cpu.per_run_s[1])}")


class _Cpu:
    """Processor time that groups of processes spend on a run: what stays true on a machine with other work to do."""

    def __init__(self, *groups: list[psutil.Process]) -> None:
        self._groups = groups
        self._runs = 0.0
        self._before = [self._spent_s(group) for group in groups]

    def counted(self, rate: float, seconds: float) -> float:
        """`rate`, when it has been noted that so many runs a second were made for `seconds`."""
        self._runs += rate * seconds
        return rate

    @property
    def per_run_s(self) -> list[float]:
        spent = zip(self._groups, self._before, strict=True)
        return [(self._spent_s(group) - before) / self._runs for group, before in spent]

    @staticmethod
    def _spent_s(group: list[psutil.Process]) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in group)
