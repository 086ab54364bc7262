"""Many sessions over few workers: each keeps its home, and its context is never another than the rules say.

Traffic is Zipf's: the session of rank n gets 1/n of what the first gets.
"""

import random
from collections import Counter, defaultdict, deque
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

WORKERS = 8
#: Runs on their way at a time: enough that homes are busy, less than the agent's queue holds.
IN_FLIGHT = 24
COUNTING = """
import time
counts = {}

def handler(input_data):
    session = input_data["session_id"]
    counts[session] = counts.get(session, 0) + 1
    time.sleep(input_data.get("work_s", 0))
    return counts[session]
"""


def deploy(daemon: Daemon, folder: Path, **session: Any) -> str:
    scaling = {"min_workers": WORKERS, "max_workers": WORKERS}
    daemon.deploy(write_agent(folder, COUNTING, scaling=scaling, session=session))
    eventually(lambda: daemon.call("agent.stats", agent=folder.name)["workers"]["healthy"] == WORKERS, timeout_s=20)
    return folder.name


def zipf(sessions: int, runs: int, chance: random.Random) -> list[str]:
    """A session for each run; every session has at least one."""
    weights = list(accumulate(1 / rank for rank in range(1, sessions + 1)))
    ranks = [*range(sessions), *chance.choices(range(sessions), cum_weights=weights, k=runs - sessions)]
    chance.shuffle(ranks)
    return [f"s{rank}" for rank in ranks]


def drive(daemon: Daemon, agent: str, jobs: list[str], overlapping: bool, work_s: float = 0) -> dict[str, list[Any]]:
    """The answers of each session's runs, in the order they came; without `overlapping` no session has two at once."""
    answers: defaultdict[str, list[Any]] = defaultdict(list)
    waiting: defaultdict[str, int] = defaultdict(int)
    ready = deque(jobs)
    busy: dict[int, str] = {}
    with daemon.connect() as control:
        while ready or busy:
            while ready and len(busy) < IN_FLIGHT:
                session = ready.popleft()
                if not overlapping and session in busy.values():
                    waiting[session] += 1
                    continue
                busy[control.send("run", agent=agent, session_id=session, input={"work_s": work_s})] = session
            frame = control.receive()
            session = busy.pop(frame["id"])
            answers[session].append(frame["result"])
            if waiting[session]:
                waiting[session] -= 1
                ready.appendleft(session)
    return answers


@pytest.mark.parametrize(("sessions", "runs"), [
    (1_000, 5_000), pytest.param(10_000, 100_000, marks=[pytest.mark.slow, pytest.mark.deadline(400)])])
def test_without_overlap_every_run_after_the_first_is_warm(
        daemon: Daemon, tmp_path: Path, sessions: int, runs: int) -> None:
    # fault 65
    # patience beyond any stall of the machine: what is measured here is the rule
    name = deploy(daemon, tmp_path / f"zipf-{sessions}", patience_ms=60_000)
    answers = drive(daemon, name, zipf(sessions, runs, random.Random(3)), overlapping=False)
    assert len(answers) == sessions
    for session, given in answers.items():
        assert [one["session"]["context"] for one in given] == ["new"] + ["warm"] * (len(given) - 1), session
        assert [one["session"]["turn"] for one in given] == list(range(1, len(given) + 1)), session
        assert [one["result"] for one in given] == list(range(1, len(given) + 1)), session
        assert len({one["worker_id"] for one in given}) == 1, session
    counts = daemon.call("agent.stats", agent=name)
    assert counts["contexts"] == {
        "new": sessions, "warm": runs - sessions, "spilled": 0, "restored": 0, "lost": 0}
    assert (counts["sessions"]["count"], counts["sessions"]["homeless"]) == (sessions, 0)
    homes = Counter(given[0]["worker_id"] for given in answers.values())
    assert len(homes) == WORKERS
    assert max(homes.values()) < 2 * sessions / WORKERS, "no worker has far more sessions than the others"


def test_with_overlap_a_run_is_warm_at_home_and_spilled_elsewhere(daemon: Daemon, tmp_path: Path) -> None:
    name = deploy(daemon, tmp_path / "zipf-overlaps", patience_ms=1)
    answers = drive(daemon, name, zipf(50, 2_000, random.Random(5)), overlapping=True, work_s=0.003)
    told = Counter(one["session"]["context"] for given in answers.values() for one in given)
    assert set(told) == {"new", "warm", "spilled"}
    assert told["new"] == 50
    homes = {session: next(one["worker_id"] for one in given if one["session"]["context"] == "new")
             for session, given in answers.items()}
    for session, given in answers.items():
        for one in given:
            assert (one["worker_id"] == homes[session]) == (one["session"]["context"] != "spilled"), session
        at_home = [one["result"] for one in given if one["session"]["context"] != "spilled"]
        assert at_home == list(range(1, len(at_home) + 1)), "the home's memory goes on where it was"
    assert daemon.call("agent.stats", agent=name)["contexts"] == {"restored": 0, "lost": 0, **told}
