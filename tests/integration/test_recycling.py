"""Agents that leak are kept small: their workers are replaced, and no caller notices but by another process."""

from collections import Counter
from pathlib import Path

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.integration.traffic import Traffic

#: Each run keeps a megabyte for ever, as the worst of agents do.
LEAKY = """
import os, workspace
kept, turns = [], {}
def handler(input_data):
    kept.append(os.urandom(1024 * 1024))
    session = workspace.run.session
    turns[session] = turns.get(session, 0) + 1
    return {"pid": os.getpid(), "turn": turns[session]}
"""
POOL = 3


def workers(daemon: Daemon, agent: str) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = daemon.call("agent.show", agent=agent)["workers"]
    return shown


def _states(daemon: Daemon, agent: str) -> set[str]:
    return {run["state"] for run in daemon.call("run.list", agent=agent, limit=1000)["runs"]}


def test_an_agent_that_leaks_never_meets_its_limit_and_one_worker_is_missing_at_most(
        daemon: Daemon, tmp_path: Path) -> None:
    # fault 27
    daemon.deploy(write_agent(
        tmp_path / "leaky", LEAKY, memory=400, recycle={"memory_mb": 60}, deploy={"drain_seconds": 0.2},
        scaling={"min_workers": POOL, "max_workers": POOL}))
    eventually(lambda: sum(row["state"] == "ready" for row in workers(daemon, "leaky")) == POOL)
    fewest, replaced = POOL, set()

    def enough_replaced() -> bool:
        nonlocal fewest
        rows = workers(daemon, "leaky")
        fewest = min(fewest, sum(row["state"] == "ready" and not row["outdated"] for row in rows))
        replaced.update(row["id"] for row in rows if row["outdated"])
        return len(replaced) >= 2 * POOL

    with Traffic(daemon, "leaky", sessions=0) as traffic:
        eventually(enough_replaced, 60, "two generations of workers to be replaced")
    assert not traffic.refused and not traffic.broken
    assert fewest >= POOL - 1
    eventually(lambda: _states(daemon, "leaky") == {"completed"}, what="the last ends to be written")
    assert "is replaced: it uses" in daemon.log and "more than 60 MB" in daemon.log


def test_a_session_that_goes_on_keeps_its_worn_worker(daemon: Daemon, tmp_path: Path) -> None:
    # fault 27
    daemon.deploy(write_agent(tmp_path / "worn", LEAKY, recycle={"max_runs": 3}))
    answers = [daemon.call("run", agent="worn", input={}, session_id="s") for _ in range(5)]
    assert [answer["result"]["turn"] for answer in answers] == [1, 2, 3, 4, 5]
    assert len({answer["result"]["pid"] for answer in answers}) == 1
    assert Counter(answer["session"]["context"] for answer in answers) == {"new": 1, "warm": 4}
    other = daemon.call("run", agent="worn", input={}, session_id="other")
    assert other["worker_id"] != answers[0]["worker_id"]
    [old] = [row for row in workers(daemon, "worn") if row["id"] == answers[0]["worker_id"]]
    assert old["outdated"] and old["state"] == "ready"
