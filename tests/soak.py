"""`make soak`: a daemon and its workers are killed again and again under constant load, and nothing may be lost.

    python -m tests.soak [--daemon-kills 200] [--worker-kills 500] [--runs 20000] [--seed N] [--durability os|disk]

Clients ask without a pause, in 50 sessions: some wait for their answer, some stream, some detach. Meanwhile the
daemon is killed by SIGKILL and started again, and so are single workers, at random moments. At the end the
invariants I1 to I4 (tests/fault/invariants.py) must hold over everything that was said, logged and done, and no
process may be left.

With `durability: os` an answer does not wait for the disk: for up to 50 ms it is in two processes, the daemon and the
worker, of which any one may die. So kills are APART_S apart then. With `disk` they come whenever they come.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import witness
from tests.fault.callers import Line
from tests.fault.holdings import agents, stored
from tests.fault.invariants import (
    Effect,
    Facts,
    Said,
    completed_means_completed,
    every_run_ends_once,
    every_run_happens_once,
    one_home_each,
)
from tests.planted import LOOKOUT

AGENT = "soaked"
SESSIONS = 50
CLIENTS = 6
#: More than a commit takes: see above.
APART_S = 0.15
#: How long the load goes on undisturbed between two kills, at most.
PAUSE_S = 0.45
ANSWER_TIMEOUT_S = 30.0
SETTLE_S = 60.0

HANDLER = """
import time
turns = {}

def handler(input_data):
    turn = turns[workspace.run.session] = turns.get(workspace.run.session, 0) + 1
    if input_data["pieces"]:
        workspace.emit(turn)
    time.sleep(input_data["seconds"])
    effect()
    return {"turn": turn, "pid": os.getpid()}
"""
KINDS = ("sync", "stream", "detach")


class Report(NamedTuple):
    """What the soak did and found. Times are seconds from the start of a daemon's process to its first answer."""

    runs: int
    kinds: dict[str, int]
    states: dict[str, int]
    contexts: dict[str, int]
    daemon_kills: int
    worker_kills: int
    ready_s: list[float]
    violations: list[str]
    left: list[str]

    @property
    def ready_p99_s(self) -> float:
        return sorted(self.ready_s)[max(0, -(-len(self.ready_s) * 99 // 100) - 1)]


class Clients:
    """Threads that ask without a pause while the daemon is `up`. Invariant: `said` has everything anybody was told."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.up = threading.Event()
        self.said: list[Said] = []
        self.kinds: Counter[str] = Counter()
        self.faults: list[str] = []
        self._daemon = daemon
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(random.Random(f"{seed}-{number}"),))
                         for number in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        self.up.set()
        for thread in self._threads:
            thread.join(ANSWER_TIMEOUT_S)

    def _ask(self, dice: random.Random) -> None:
        while not self._over.is_set():
            self.up.wait(1.0)
            try:
                with Line(self._daemon.control_socket, ANSWER_TIMEOUT_S) as line:
                    while not self._over.is_set():
                        self._one(line, dice)
            except (OSError, EOFError):
                self.up.wait(0.01)
            except Exception as error:  # whatever it is, it is told at the end
                self.faults.append(f"a client: {type(error).__name__}: {error}")
                return

    def _one(self, line: Line, dice: random.Random) -> None:
        """One run, from the request to the answer or the end of the connection."""
        kind, session = dice.choice(KINDS), f"s-{dice.randrange(SESSIONS)}"
        input = {"seconds": dice.choice((0.0, 0.0, 0.005, 0.02)), "pieces": kind == "stream"}
        told: dict[str, Any] = {}
        raw, run_id = b"", None
        self.kinds[kind] += 1
        try:
            id = line.send("run", agent=AGENT, input=input, session_id=session, stream=kind == "stream",
                           detach=kind == "detach")
            while not told:
                raw = line.line()
                frame = json.loads(raw)
                if frame.get("id") == id:
                    told = frame
                elif frame["params"].get("event") == "accepted":
                    run_id = frame["params"]["data"]["request_id"]
        finally:
            self.said.append(_said(session, kind, told, raw, run_id))


def _said(session: str, kind: str, told: dict[str, Any], raw: bytes, run_id: str | None) -> Said:
    """An answer to a detached run promises that it will be executed, and no more."""
    if "result" in told and kind == "detach":
        return Said(AGENT, session, told["result"]["request_id"], None)
    if "result" in told:
        result = told["result"]
        return Said(AGENT, session, result["request_id"], "", raw, result["worker_id"], result["session"]["context"])
    if "error" in told:
        data = told["error"]["data"]
        return Said(AGENT, session, data.get("request_id", run_id), data["code"], raw, data.get("worker_id"),
                    (data.get("session") or {}).get("context"))
    return Said(AGENT, session, run_id, None)


class Killer:
    """Kills, and starts what must be started. `ready_s` are the times that took."""

    def __init__(self, daemon: Daemon, clients: Clients, dice: random.Random, apart_s: float) -> None:
        self.ready_s: list[float] = []
        self.workers_killed = 0
        self._daemon = daemon
        self._clients = clients
        self._dice = dice
        self._apart_s = apart_s
        self._clock = threading.Event()

    def worker(self) -> None:
        """Kill one worker, any; when all have just been killed, the first of the next."""
        self._wait()
        pids: list[int] = []

        def some() -> bool:
            with suppress(OrpheusError, OSError, EOFError):
                pids[:] = [row["pid"] for row in self._daemon.call("agent.show", agent=AGENT)["workers"] if row["pid"]]
            return bool(pids)

        eventually(some, ANSWER_TIMEOUT_S, "a worker to kill")
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self._dice.choice(pids)).kill()
            self.workers_killed += 1

    def daemon(self) -> None:
        self._wait()
        self._clients.up.clear()
        self._daemon.crash()
        began = time.monotonic()
        self._daemon.start()
        self.ready_s.append(time.monotonic() - began)
        self._clients.up.set()

    def _wait(self) -> None:
        """The load goes on for a while: nothing ever sets this clock."""
        self._clock.wait(self._apart_s + self._dice.uniform(0, PAUSE_S))


def soak(daemon_kills: int, worker_kills: int, runs: int, seed: int, durability: str, tell: bool = False) -> Report:
    """Kill so often, and not before so many runs were asked for."""
    dice = random.Random(seed)
    daemon = Daemon(http=False, env={"ORPHEUS_DURABILITY": durability})
    try:
        daemon.start()
        with tempfile.TemporaryDirectory() as folder:
            daemon.deploy(witness(Path(folder) / AGENT, HANDLER, scaling={"min_workers": 4, "max_workers": 6}))
        clients = Clients(daemon, seed)
        killer = Killer(daemon, clients, dice, APART_S if durability == "os" else 0.0)
        clients.up.set()
        clients.start()
        try:
            per_cycle = -(-worker_kills // max(1, daemon_kills))
            while len(killer.ready_s) < daemon_kills or len(clients.said) < runs:
                for _ in range(per_cycle):
                    killer.worker()
                killer.daemon()
                if tell and len(killer.ready_s) % 10 == 0:
                    print(f"{len(killer.ready_s)} kills of the daemon, {killer.workers_killed} of workers, "
                          f"{len(clients.said)} runs", file=sys.stderr, flush=True)
        finally:
            clients.stop()
        return _judged(daemon, clients, killer)
    finally:
        daemon.close()


def _judged(daemon: Daemon, clients: Clients, killer: Killer) -> Report:
    eventually(lambda: _at_rest(daemon), SETTLE_S, "every run to have its end")
    rows = stored(daemon, 0)
    facts = Facts(said=tuple(clients.said), stored=rows, effects=_effects(daemon))
    with_homes = facts._replace(agents=agents(daemon))
    found = [*clients.faults, *every_run_ends_once(facts), *every_run_happens_once(facts),
             *completed_means_completed(facts), *one_home_each(with_homes)]
    family = [*daemon.family(), *daemon.orphans()]
    daemon.stop()
    _, alive = psutil.wait_procs(family, timeout=3)
    left = [f"{process.pid} {process.name()}" for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    return Report(
        len(clients.said), dict(clients.kinds), dict(Counter(row.state for row in rows)),
        dict(Counter(row.context or "none" for row in rows)), len(killer.ready_s), killer.workers_killed,
        killer.ready_s, found, left)


def _at_rest(daemon: Daemon) -> bool:
    queue = daemon.call("agent.stats", agent=AGENT)["queue"]
    return not (queue["depth"] or queue["processing"] or daemon.call("status")["run_log"]["pending_changes"])


def _effects(daemon: Daemon) -> tuple[Effect, ...]:
    lines = (daemon.state_dir / "workspaces" / AGENT / "effects").read_text().splitlines()
    return tuple(Effect(AGENT, run_id, int(pid)) for run_id, pid in map(str.split, lines))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--daemon-kills", type=int, default=200)
    parser.add_argument("--worker-kills", type=int, default=500)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--durability", choices=("os", "disk"), default="os")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    report = soak(options.daemon_kills, options.worker_kills, options.runs, options.seed, options.durability, True)
    print(f"{report.runs} runs {report.kinds}: {report.states}, contexts {report.contexts}")
    print(f"{report.daemon_kills} kills of the daemon, {report.worker_kills} of workers; ready again in "
          f"{sorted(report.ready_s)[len(report.ready_s) // 2]:.2f} s, p99 {report.ready_p99_s:.2f} s")
    told = LOOKOUT.taken()
    for line in [*report.violations[:40], *report.left, *told]:
        print(f"VIOLATION {line}")
    print(f"{len(report.violations)} violations of I1 to I4, {len(report.left)} processes left")
    print(LOOKOUT)
    return 1 if report.violations or report.left or told or report.ready_p99_s > 1.0 else 0


if __name__ == "__main__":
    sys.exit(main())
