"""One agent that takes without end, and what becomes of another's runs meanwhile.

Warm runs over the control socket, so many a second, in windows: a quiet one, then one in which the greedy agent is
asked for a run, and again as soon as that has ended, and so in turn. A greedy agent is deployed anew for each window,
so that it is not in quarantine. A row is the p99 of a window, the median over the windows; its ratio is that of these,
or the median of the rounds' own ratios, whichever is greater: disk writes come back to others in some rounds only.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import peers
from bench.clients import LineClient
from bench.control import request
from bench.measure import Row, milliseconds, p99, paced_s, paired, times, verdict
from orpheusd.process.claims import take_short_turns

RUNS_PER_S = 200
MOST_TIMES_QUIET = 2.0
#: What a greedy agent does, and what its caller is told then.
GREEDS = {
    "allocates": ("memory without end", "out of memory: killed by"),
    "forks": ("processes without end", "more than 512 processes"),
    "writes": ("files without end", "more than its `workspace.max_mb` of 1024"),
    "writes_one": ("a file without end", "File too large"),
}
#: Between two runs of a greedy agent.
AGAIN_S = 0.02


def rows(quick: bool) -> Iterator[Row]:
    rounds, window_s = (1, 1.0) if quick else (5, 4.0)
    take_short_turns()  # what the caller itself waits for a processor is not to be counted
    with ExitStack() as stack:
        orpheus = stack.enter_context(peers.daemon(peers.AGENTS / "echo"))
        calm, greedy = (stack.enter_context(_client(orpheus.control_socket)) for _ in range(2))
        line = request("one")
        calm.call(line)

        def alone() -> float:
            return p99(paced_s(lambda: calm.call(line), RUNS_PER_S, window_s))

        for greed, (what, told) in GREEDS.items():
            told_here: list[str] = []

            def beside(greed: str = greed, told_here: list[str] = told_here) -> float:
                orpheus.deploy(peers.AGENTS / "greedy")
                with _greed(greedy, greed, window_s, told_here):
                    figure = alone()
                orpheus.call("undeploy", agent="greedy", purge=True)
                return figure

            pair = paired(beside, alone, rounds)
            ratio = max(pair.ratio, pair.ours / pair.beside)
            contained = bool(told_here) and all(told in one or "refused for a while" in one for one in told_here)
            yield Row(f"a warm run beside {what}, p99", milliseconds(pair.ours), f"alone {milliseconds(pair.beside)}",
                      times(ratio), f"< {MOST_TIMES_QUIET:g} x alone", verdict(ratio < MOST_TIMES_QUIET))
            yield Row("  what its caller is told", _cause(told_here[0]) if told_here else "nothing",
                      budget=f"... {told} ...", verdict=verdict(contained))


def _cause(message: str) -> str:
    """What is in the parentheses of the message about a worker's death; any other message as it is."""
    return message.removeprefix("the worker died while it ran this (").partition("); ")[0]


@contextmanager
def _client(path: Any) -> Iterator[LineClient]:
    client = LineClient(path)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _greed(client: LineClient, greed: str, seconds: float, told: list[str]) -> Iterator[None]:
    """The greedy agent at work, from the first run to the end of the last that was begun within `seconds`."""
    params = {"agent": "greedy", "input": {"do": greed}}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "run", "params": params}).encode() + b"\n"

    def ask() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told.append(json.loads(client.call(line))["error"]["message"])
            time.sleep(AGAIN_S)  # the load itself: so soon it is greedy again

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        asking.join()
