"""`workspace.session` on real workers: what it holds outlives them, turn by turn."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Control, Daemon, write_agent
from tests.eventually import eventually

COUNTING = """
import workspace

def handler(input_data):
    workspace.session["turn"] = workspace.session.get("turn", 0) + 1
    return workspace.session["turn"]
"""


def kill_workers(control: Control, agent: str) -> None:
    for row in control.call("agent.show", agent=agent)["workers"]:
        if row["pid"]:
            os.kill(row["pid"], signal.SIGKILL)


def test_no_turn_is_lost_or_repeated_when_workers_are_killed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "counts", COUNTING, scaling={"min_workers": 2}))
    chance = random.Random(11)
    contexts = []
    with daemon.connect(timeout_s=20) as control:
        for turn in range(1, 101):
            answer = control.call("run", agent="counts", input={}, session_id="s")
            assert answer["result"] == turn
            assert answer["session"]["turn"] == turn
            contexts.append(answer["session"]["context"])
            if chance.random() < 0.3:
                kill_workers(control, "counts")
    assert contexts[0] == "new"
    assert set(contexts[1:]) == {"warm", "restored"}


def test_a_turn_that_fails_leaves_no_half_state(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "halves", """
import workspace

def handler(input_data):
    workspace.session["n"] = workspace.session.get("n", 0) + 1
    if input_data.get("fail"):
        raise RuntimeError("half way")
    return workspace.session["n"]
"""))
    with daemon.connect() as control:
        assert control.call("run", agent="halves", input={}, session_id="s")["result"] == 1
        with pytest.raises(OrpheusError, match="half way"):
            control.call("run", agent="halves", input={"fail": True}, session_id="s")
        assert control.call("run", agent="halves", input={}, session_id="s")["result"] == 2
        with pytest.raises(OrpheusError, match="no session id"):
            control.call("run", agent="halves", input={})


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_two_runs_that_both_change_the_state_conflict(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    name = "clash-" + kind.replace(" ", "-")
    wait = "await asyncio.sleep" if kind == "async def" else "time.sleep"
    daemon.deploy(write_agent(tmp_path / name, f"""
import asyncio, time, workspace

{kind} handler(input_data):
    n = workspace.session.get("n", 0)
    {wait}(input_data["work_s"])
    workspace.session["n"] = n + 1
    return n + 1
""", concurrency=2 if kind == "async def" else 1, scaling={"min_workers": 2}))
    with daemon.connect() as control:
        eventually(lambda: control.call("agent.stats", agent=name)["workers"]["healthy"] == 2)
        assert control.call("run", agent=name, input={"work_s": 0}, session_id="s")["result"] == 1
        slow = control.send("run", agent=name, input={"work_s": 1.0}, session_id="s")
        quick = control.send("run", agent=name, input={"work_s": 0}, session_id="s")
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < 2:
            frame = control.receive()
            answers[frame["id"]] = frame
        assert answers[quick]["result"]["result"] == 2
        assert answers[slow]["error"]["data"]["code"] == "conflict"
        assert control.call("run", agent=name, input={"work_s": 0}, session_id="s")["result"] == 3


def test_hooks_are_called(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "hooked", """
import workspace
started = []

@workspace.on_start
def begin():
    started.append(1)

@workspace.on_session_end
def over(session_id, reason):
    with open(workspace.path("ended.txt"), "a") as file:
        file.write(f"{session_id} {reason}\\n")

def handler(input_data):
    return len(started)
"""))
    ended = daemon.state_dir / "workspaces" / "hooked" / "ended.txt"
    with daemon.connect() as control:
        assert control.call("run", agent="hooked", input={}, session_id="a")["result"] == 1
        control.call("run", agent="hooked", input={}, session_id="b")
        control.call("session.end", agent="hooked", session_id="a")
        eventually(lambda: ended.exists() and ended.read_text() == "a ended\n", what="the hook of the end")
        control.call("restart", agent="hooked")
        eventually(lambda: ended.read_text() == "a ended\nb drain\n", what="the hook of the drain")


def test_a_start_hook_that_raises_refuses_the_deploy(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(OrpheusError, match="not today"):
        daemon.deploy(write_agent(tmp_path / "refuses", """
import workspace

@workspace.on_start
def begin():
    raise RuntimeError("not today")

def handler(input_data):
    return 1
"""))


def test_a_restarted_daemon_never_calls_an_old_session_new(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "durable", COUNTING))
    daemon.deploy(write_agent(tmp_path / "fleeting", "def handler(input_data):\n    return 1\n"))
    for agent in ("durable", "fleeting"):
        for session in ("old", "ended"):
            daemon.call("run", agent=agent, input={}, session_id=session)
        daemon.call("session.end", agent=agent, session_id="ended")
    daemon.restart()
    seen = {}
    for agent in ("durable", "fleeting"):
        for session in ("old", "ended", "fresh"):
            answer = daemon.call("run", agent=agent, input={}, session_id=session)
            seen[agent, session] = (answer["session"]["context"], answer["session"]["turn"])
    assert seen == {
        ("durable", "old"): ("restored", 2), ("durable", "ended"): ("new", 1), ("durable", "fresh"): ("new", 1),
        ("fleeting", "old"): ("lost", 2), ("fleeting", "ended"): ("new", 1), ("fleeting", "fresh"): ("new", 1),
    }  # fmt: skip


def test_a_session_that_was_ended_stays_so_when_the_daemon_is_killed(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "durable", COUNTING))
    before = daemon.call("run", agent="durable", input={}, session_id="s")
    assert daemon.call("session.end", agent="durable", session_id="s") == {"id": "s", "ended": True}
    daemon.crash()
    daemon.start()
    answer = daemon.call("run", agent="durable", input={}, session_id="s")
    assert (answer["session"]["context"], answer["session"]["turn"]) == ("new", 1)
    assert answer["result"] == before["result"], "what it had saved is gone"


SAVING = """
import time, workspace

def handler(input_data):
    time.sleep(input_data.get("work_s", 0))
    workspace.session["n"] = workspace.session.get("n", 0) + 1
    return workspace.session["n"]
"""


def test_a_late_end_leaves_the_next_life_alone(daemon: Daemon, tmp_path: Path) -> None:
    """The old home is busy when it is told that the session is over, and the session lives elsewhere by then."""
    daemon.deploy(write_agent(tmp_path / "lives", SAVING, scaling={"min_workers": 1, "max_workers": 2}))
    with daemon.connect() as control:
        old = control.call("run", agent="lives", input={}, session_id="a")["worker_id"]
        slow = control.send("run", agent="lives", input={"work_s": 1.0}, session_id="b")
        with daemon.connect() as other:
            eventually(lambda: other.call("session.list", agent="lives")["total"] == 2)
            other.call("session.end", agent="lives", session_id="a")
            again = other.call("run", agent="lives", input={}, session_id="a")
            assert (again["session"]["context"], again["result"]) == ("new", 1)
            assert again["worker_id"] != old
        assert control.receive()["id"] == slow
        # the old home serves again, so it has heard of the end
        assert control.call("run", agent="lives", input={}, session_id="b")["worker_id"] == old
        kill_workers(control, "lives")
        last = control.call("run", agent="lives", input={}, session_id="a")
        assert (last["session"]["context"], last["result"]) == ("restored", 2)


def test_a_killed_daemon_remembers_what_it_answered(new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "survives", SAVING))
    for session in ("first", "second", "third"):
        answer = daemon.call("run", agent="survives", input={}, session_id=session)
        assert answer["session"]["context"] == "new"
        daemon.kill()
        daemon.start()
        answer = daemon.call("run", agent="survives", input={}, session_id=session)
        assert (answer["session"]["context"], answer["result"]) == ("restored", 2)


def test_cleaning_a_workspace_keeps_what_sessions_saved(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "tidy", SAVING))
    for turn in (1, 2):
        assert daemon.call("run", agent="tidy", input={}, session_id="s")["result"] == turn
        (daemon.state_dir / "workspaces" / "tidy" / "rubbish").write_text("x")
        assert daemon.call("workspace.clean", agent="tidy")["removed_files"] == 1


def test_what_is_not_kept_of_the_output_is_told(daemon: Daemon, tmp_path: Path) -> None:
    code = "def handler(input_data):\n    print('x' * 3_000_000)\n    return 1\n"
    daemon.deploy(write_agent(tmp_path / "chatty", code))
    with daemon.connect() as control:
        events = [frame["params"] for frame in control.stream("run", agent="chatty", input={}, stream=True)
                  if "params" in frame]
    (dropped,) = [event for event in events if event["event"] == "dropped"]
    assert dropped["data"]["bytes"] > 1_000_000
    assert "not kept" in daemon.call("logs", agent="chatty")["lines"][-1]["text"]


def test_an_abandoned_follower_is_let_go(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "quiet", "def handler(input_data):\n    return 1\n"))
    before = psutil.Process(daemon.pid).num_fds()
    for _ in range(50):
        with daemon.connect() as control:
            control.send("logs", agent="quiet", stream=True)
            control.call("health")
    eventually(lambda: psutil.Process(daemon.pid).num_fds() <= before, what="the connections are closed")
