"""Sessions on real workers: the same process, told truthfully, whatever happens to it."""

import json
import os
import random
import signal
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import ROOT, Daemon, write_agent
from tests.eventually import eventually

COUNTING = """
import os, time
counts = {}

def handler(input_data):
    time.sleep(input_data.get("work_s", 0.001))
    session = input_data["session_id"]
    counts[session] = counts.get(session, 0) + 1
    return {"count": counts[session], "pid": os.getpid()}
"""


def run_all(daemon: Daemon, agent: str, jobs: list[tuple[str, float]], at_once: int) -> dict[str, list[Any]]:
    """Runs each (session, work_s), `at_once` at a time and never two of one session; answers by session, in order."""
    waiting: defaultdict[str, list[float]] = defaultdict(list)
    for session, work_s in jobs:
        waiting[session].append(work_s)
    free = list(waiting)
    answers: defaultdict[str, list[Any]] = defaultdict(list)
    lock = threading.Lock()
    chance = random.Random(7)

    def work() -> None:
        with daemon.connect() as control:
            while True:
                with lock:
                    if not free:
                        return
                    session = free.pop(chance.randrange(len(free)))
                input = {"work_s": waiting[session].pop()}
                answers[session].append(control.call("run", agent=agent, input=input, session_id=session))
                if waiting[session]:
                    with lock:
                        free.append(session)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def deploy(daemon: Daemon, folder: Path, workers: int, patience_ms: int = 100) -> str:
    """Deploys a counting agent with that many workers, all of them ready."""
    scaling = {"min_workers": workers, "max_workers": workers}
    daemon.deploy(write_agent(folder, COUNTING, scaling=scaling, session={"patience_ms": patience_ms}))
    eventually(lambda: daemon.call("agent.stats", agent=folder.name)["workers"]["healthy"] == workers)
    return folder.name


def test_sessions_keep_their_worker(daemon: Daemon, tmp_path: Path) -> None:
    # more patience than the default: where a machine stands still for 100 ms, a spill is right
    deploy(daemon, tmp_path / "keeps", workers=4, patience_ms=20_000)
    jobs = [(f"s{n}", 0.001) for n in range(64) for _ in range(50)]
    answers = run_all(daemon, "keeps", jobs, at_once=8)
    for session, given in answers.items():
        assert [answer["result"]["count"] for answer in given] == list(range(1, 51)), session
        assert len({answer["worker_id"] for answer in given}) == 1, session
        assert len({answer["result"]["pid"] for answer in given}) == 1, session
        assert [answer["session"]["context"] for answer in given] == ["new"] + ["warm"] * 49, session
        assert [answer["session"]["turn"] for answer in given] == list(range(1, 51)), session
    assert daemon.call("agent.stats", agent="keeps")["contexts"]["spilled"] == 0


def test_a_busy_home_spills_and_says_so(daemon: Daemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path / "spills", workers=4)
    jobs = [(f"s{n}", 0.3) for n in range(16) for _ in range(5)]
    answers = run_all(daemon, "spills", jobs, at_once=4)
    home_count: defaultdict[str, int] = defaultdict(int)
    contexts = set()
    for session, given in answers.items():
        home = given[0]["worker_id"]
        for answer in given:
            contexts.add(answer["session"]["context"])
            if answer["session"]["context"] == "spilled":
                assert answer["worker_id"] != home
            else:
                assert answer["worker_id"] == home
                home_count[session] += 1
                assert answer["result"]["count"] == home_count[session], "the home's count goes on where it was"
    assert contexts == {"new", "warm", "spilled"}


def test_a_killed_worker_is_told_as_lost(daemon: Daemon, tmp_path: Path) -> None:
    # fault 1
    deploy(daemon, tmp_path / "mourns", workers=2)
    with daemon.connect(timeout_s=5) as control:
        first = control.call("run", agent="mourns", input={}, session_id="a")
        other = control.call("run", agent="mourns", input={}, session_id="b")
        assert first["worker_id"] != other["worker_id"], "sessions spread over idle workers"
        pids = {row["id"]: row["pid"] for row in daemon.call("agent.show", agent="mourns")["workers"]}
        os.kill(pids[first["worker_id"]], signal.SIGKILL)
        again = control.call("run", agent="mourns", input={}, session_id="a")
        assert again["session"]["context"] == "lost"
        assert again["worker_id"] != first["worker_id"]
        assert again["result"]["count"] == 1
        assert again["session"]["turn"] == 2
        same = control.call("run", agent="mourns", input={}, session_id="b")
        assert same["session"]["context"] == "warm"
        assert same["worker_id"] == other["worker_id"]
    eventually(lambda: daemon.call("agent.stats", agent="mourns")["workers"]["healthy"] == 2, what="a refilled slot")


def test_both_doors_reach_one_session(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "doors", COUNTING, scaling={"min_workers": 3}))
    by_ctl = daemon.ctl("run", "doors", "{}", "--session", "both")
    assert by_ctl.returncode == 0, by_ctl.stderr
    by_http = httpx.post(f"{daemon.http}/v1/agents/doors/run", json={"input": {}}, headers={"X-Session-ID": "both"})
    assert by_http.status_code == 200
    answer = by_http.json()
    assert answer["result"] == {"count": 2, "pid": json.loads(by_ctl.stdout)["pid"]}
    assert answer["session"] == {"id": "both", "context": "warm", "turn": 2}
    assert by_http.headers["X-Orpheus-Context"] == "warm"
    assert by_http.headers["X-Orpheus-Worker"] == answer["worker_id"]


def test_the_workspace_outlives_everything(tmp_path: Path) -> None:
    durable = ROOT / "examples" / "durable-conversation"
    with_own = Daemon(directory=None).start()
    try:
        name = with_own.deploy(durable)["name"]
        with_own.deploy(write_agent(tmp_path / "stranger", """
import os
def handler(input_data):
    seen = []
    for folder, _, files in os.walk("/workspace"):
        seen += [os.path.join(folder, file) for file in files]
    return seen
"""))
        turns = []
        def turn() -> None:
            answer = with_own.call("run", agent=name, input={"query": "hi"}, session_id="s")
            turns.append(answer["result"]["turn"])
        turn()
        with_own.call("restart", agent=name)
        turn()
        with_own.deploy(durable)
        turn()
        with_own.restart()
        turn()
        assert turns == [1, 2, 3, 4]
        assert with_own.call("run", agent="stranger", input={})["result"] == []
    finally:
        with_own.close()


def test_session_end_makes_the_next_run_new(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "ends", COUNTING))
    with daemon.connect() as control:
        control.call("run", agent="ends", input={}, session_id="x")
        assert control.call("session.show", agent="ends", session_id="x")["turns"] == 1
        assert control.call("session.end", agent="ends", session_id="x") == {"id": "x", "ended": True}
        with pytest.raises(OrpheusError) as gone:
            control.call("session.show", agent="ends", session_id="x")
        assert gone.value.code == "not-found"
        assert control.call("run", agent="ends", input={}, session_id="x")["session"]["context"] == "new"
