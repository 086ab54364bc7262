"""Detached runs on a real daemon: accepted for good, executed once whatever is killed, fetched by their id."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import ROOT, Daemon, write_agent
from tests.eventually import eventually

#: Each execution leaves a line: what a run id stands there for more than once was executed more than once.
AGENT = """
import os, time, workspace

turns = 0

def handler(input_data):
    global turns
    turns += 1
    with open(workspace.path("executed"), "a") as file:
        file.write(f"{workspace.run.id}\\n")
    if input_data.get("until"):
        while not os.path.exists(workspace.path(input_data["until"])):
            time.sleep(0.005)
    time.sleep(input_data.get("work_s", 0))
    if input_data.get("fail"):
        raise ValueError("as asked")
    return {"n": input_data.get("n"), "turn": turns, "large": 2 ** 70}
"""
ONE_WORKER = {"scaling": {"min_workers": 1, "max_workers": 1, "queue_size": 2000}}


@pytest.fixture(scope="module")
def agent(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / "detached", AGENT, **ONE_WORKER))
    return "detached"


def workspace_of(daemon: Daemon, name: str) -> Path:
    return Path(daemon.call("workspace.info", agent=name)["path"])


def executed(workspace: Path) -> Counter[str]:
    file = workspace / "executed"
    return Counter(file.read_text().split()) if file.exists() else Counter()


def detach(daemon: Daemon, name: str, session_id: str | None = None, **input: Any) -> str:
    answer = daemon.call("run", agent=name, input=input, session_id=session_id, detach=True)
    assert (answer["state"], answer["agent"], answer["session_id"]) == ("queued", name, session_id)
    run_id: str = answer["request_id"]
    return run_id


def ended(daemon: Daemon, run_id: str) -> dict[str, Any]:
    row: dict[str, Any] = daemon.call("run.show", run_id=run_id, wait=30)
    assert row["ended_at"] is not None, row
    return row


def test_a_detached_run_is_in_the_log_when_it_is_accepted(daemon: Daemon, agent: str) -> None:
    run_id = detach(daemon, agent, "user-1", n=1)
    shown = daemon.call("run.show", run_id=run_id)
    assert (shown["run_id"], shown["detached"], shown["input"]) == (run_id, True, {"n": 1})
    row = ended(daemon, run_id)
    assert (row["state"], row["result"]["n"], row["result"]["large"]) == ("completed", 1, 2**70)
    assert executed(workspace_of(daemon, agent))[run_id] == 1


def test_over_http_it_is_202_with_a_place_to_ask(daemon: Daemon, agent: str) -> None:
    with httpx.Client(base_url=daemon.http or "", timeout=40) as http:
        accepted = http.post(f"/v1/agents/{agent}/run", json={"input": {"n": 2}}, headers={
            "Prefer": "wait=5, respond-async", "X-Session-ID": "user-2"})
        run_id = accepted.json()["request_id"]
        assert (accepted.status_code, accepted.json()) == (
            202, {"request_id": run_id, "state": "queued", "agent": agent, "session_id": "user-2"})
        assert accepted.headers["Location"] == f"/v1/runs/{run_id}"
        assert accepted.headers["Preference-Applied"] == "respond-async"
        shown = http.get(accepted.headers["Location"], params={"wait": 30})
    assert (shown.status_code, shown.json()["state"], shown.json()["result"]["n"]) == (200, "completed", 2)


def test_a_wait_ends_with_the_state_the_run_is_in(daemon: Daemon, agent: str) -> None:
    run_id = detach(daemon, agent, until="go-wait")
    began = time.monotonic()
    row = daemon.call("run.show", run_id=run_id, wait=0.3)
    assert row["ended_at"] is None and time.monotonic() - began >= 0.3
    (workspace_of(daemon, agent) / "go-wait").touch()
    assert ended(daemon, run_id)["state"] == "completed"
    began = time.monotonic()
    assert daemon.call("run.show", run_id=run_id, wait=60)["state"] == "completed"
    assert time.monotonic() - began < 10
    with pytest.raises(OrpheusError, match="`wait` must be a number of seconds from 0 to 60"):
        daemon.call("run.show", run_id=run_id, wait=61)
    with pytest.raises(OrpheusError) as raised:
        daemon.call("run.show", run_id="r-nowhere", wait=5)
    assert raised.value.code == "not-found"


def test_what_is_refused_at_once_is_not_accepted(daemon: Daemon, agent: str) -> None:
    with pytest.raises(OrpheusError) as raised:
        daemon.call("run", agent="nobody", input={}, detach=True)
    assert raised.value.code == "not-found"
    for other in ("stream", "cancel_on_disconnect"):
        with pytest.raises(OrpheusError, match="`detach` excludes") as raised:
            daemon.call("run", agent=agent, input={}, detach=True, **{other: True})
        assert raised.value.code == "invalid-request"


def test_a_detached_run_is_cancelled_like_any_other(daemon: Daemon, agent: str) -> None:
    workspace = workspace_of(daemon, agent)
    first = detach(daemon, agent, until="go-cancel")
    eventually(lambda: executed(workspace)[first], what="the first to begin")
    second = detach(daemon, agent, n=2)
    daemon.call("run.cancel", run_id=second)
    daemon.call("run.cancel", run_id=first)
    assert [ended(daemon, run_id)["state"] for run_id in (first, second)] == ["cancelled", "cancelled"]
    assert executed(workspace)[second] == 0


def test_the_command_prints_the_id_and_attach_the_result(daemon: Daemon, agent: str) -> None:
    done = daemon.ctl("run", agent, '{"n": 7}', "--session", "user-7", "--async")
    run_id = done.stdout.strip()
    assert (done.returncode, done.stderr) == (0, f"accepted; `orpheusctl attach {run_id}` waits for its result\n")
    attached = daemon.ctl("attach", run_id)
    assert (attached.returncode, json.loads(attached.stdout)["n"]) == (0, 7)
    assert json.loads(daemon.ctl("show", run_id, "--wait", "5", "--json").stdout)["state"] == "completed"
    whole = json.loads(daemon.ctl("attach", run_id, "--json").stdout)
    assert (whole["request_id"], whole["session"]["id"], whole["result"]["n"]) == (run_id, "user-7", 7)


def test_attach_ends_as_run_would_have(daemon: Daemon, agent: str) -> None:
    ran = daemon.ctl("run", agent, '{"fail": true}')
    run_id = ran.stderr.split("run ")[-1].split(",")[0].split(")")[0]
    attached = daemon.ctl("attach", run_id)
    assert (attached.returncode, attached.stdout, attached.stderr) == (ran.returncode, ran.stdout, ran.stderr)
    assert "ValueError: as asked" in attached.stderr
    assert daemon.ctl("attach", "r-nowhere").returncode == 1


def test_attach_that_is_interrupted_leaves_the_run_alone(daemon: Daemon, agent: str) -> None:
    workspace = workspace_of(daemon, agent)
    run_id = detach(daemon, agent, until="go-attach", n=3)
    eventually(lambda: executed(workspace)[run_id], what="the run to begin")
    attached = subprocess.Popen([sys.executable, "-m", "orpheusctl", "attach", run_id], cwd=ROOT, env=daemon.ctl_env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: "socket:" in "".join(_files(attached.pid)), what="attach to ask")
    attached.send_signal(signal.SIGINT)
    assert (attached.communicate(timeout=20)[0], attached.returncode) == ("", 130)
    (workspace / "go-attach").touch()
    assert ended(daemon, run_id)["state"] == "completed"


def _files(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except OSError:
            continue  # closed meanwhile
    return found


def test_a_retry_is_a_new_run_of_the_same(daemon: Daemon, agent: str) -> None:
    first = detach(daemon, agent, "user-9", n=9)
    ended(daemon, first)
    again = daemon.call("run.retry", run_id=first)
    assert again["request_id"] != first
    assert (again["result"]["n"], again["session"]["id"], again["session"]["context"]) == (9, "user-9", "warm")
    printed = daemon.ctl("retry", first)
    assert (printed.returncode, json.loads(printed.stdout)["n"]) == (0, 9)
    with httpx.Client(base_url=daemon.http or "", timeout=40) as http:
        assert http.post(f"/v1/runs/{first}/retry").json()["result"]["n"] == 9
        streamed = http.post(f"/v1/runs/{first}/retry", headers={"Accept": "text/event-stream"})
        assert streamed.headers["content-type"] == "text/event-stream"
        names = [line.removeprefix("event: ") for line in streamed.text.splitlines() if line.startswith("event: ")]
        assert (names[0], names[-1]) == ("accepted", "result")
        assert json.loads(streamed.text.rstrip().rpartition("data: ")[2])["result"]["n"] == 9
        refused = http.post(f"/v1/runs/{first}/retry?stream=true")
        assert refused.status_code == 400 and "Accept: text/event-stream" in refused.json()["error"]
        missing = http.post("/v1/runs/r-none/retry", headers={"Accept": "text/event-stream"})
        assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


def test_a_retry_needs_an_end_and_the_whole_input(daemon: Daemon, agent: str) -> None:
    going = detach(daemon, agent, until="go-retry")
    with pytest.raises(OrpheusError, match="only a run that has ended can be retried") as raised:
        daemon.call("run.retry", run_id=going)
    assert raised.value.code == "conflict"
    (workspace_of(daemon, agent) / "go-retry").touch()
    ended(daemon, going)
    long = daemon.call("run", agent=agent, input={"text": "x" * 300_000})["request_id"]
    with pytest.raises(OrpheusError, match="was not kept whole in the run log") as raised:
        daemon.call("run.retry", run_id=long)
    assert raised.value.code == "conflict"


def test_what_waits_at_a_restart_is_executed_after_it(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:  # fault 31
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "slow", AGENT, **ONE_WORKER))
    workspace = workspace_of(daemon, "slow")
    going = detach(daemon, "slow", until="go")
    eventually(lambda: executed(workspace)[going], what="the first to begin")
    waiting = [detach(daemon, "slow", f"user-{n % 3}", n=n) for n in range(30)]
    (workspace / "go").touch()
    daemon.restart()
    rows = [ended(daemon, run_id) for run_id in (going, *waiting)]
    assert [row["state"] for row in rows] == ["completed"] * 31
    assert [row["result"]["n"] for row in rows[1:]] == list(range(30))
    assert executed(workspace) == Counter([going, *waiting])
    order = (workspace / "executed").read_text().split()
    assert order == [going, *waiting], "runs are queued again in the order of their acceptance"


@pytest.mark.deadline(240)
def test_a_thousand_runs_survive_the_death_of_everything(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:  # fault 31, fault 32
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "slow", AGENT, **ONE_WORKER))
    workspace = workspace_of(daemon, "slow")
    accepted: list[str] = []
    with daemon.connect() as control:
        for n in range(1000):
            control.send("run", agent="slow", input={"n": n, "work_s": 0.002}, detach=True)
        for _ in range(1000):
            accepted.append(control.receive()["result"]["request_id"])
        eventually(lambda: len(executed(workspace)) > 20, 30, "some to be executed")
        family = daemon.family()
        daemon.kill()
    assert not [process for process in family if process.is_running()]
    began = executed(workspace)
    assert len(began) < 1000 and len(set(accepted)) == 1000
    daemon.start()
    rows = {run_id: ended(daemon, run_id) for run_id in accepted}
    states = Counter(row["state"] for row in rows.values())
    assert set(states) <= {"completed", "crashed"} and states["crashed"] <= 1, states
    after = executed(workspace)
    assert max(after.values()) == 1
    for run_id, row in rows.items():
        assert after[run_id] == 1 or row["state"] == "crashed", (run_id, row)
        assert run_id not in began or row["state"] in ("completed", "crashed")
    newest_first = daemon.call("run.list", agent="slow", limit=1000)["runs"]
    assert [row["run_id"] for row in reversed(newest_first)] == accepted


def test_a_daemon_that_is_killed_alone_costs_no_run_at_all(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:  # fault 30, fault 31
    """Its worker outlives it with the run it has; those that wait are queued again, behind nobody but each other."""
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "slow", AGENT, **ONE_WORKER))
    workspace = workspace_of(daemon, "slow")
    run_ids = [detach(daemon, "slow", f"user-{n % 4}", n=n, work_s=0.02) for n in range(100)]
    key = {"agent": "slow", "input": {"n": 100}, "idempotency_key": "last"}
    last = daemon.call("run", **key, detach=True)["request_id"]
    for _ in range(3):
        before = sum(executed(workspace).values())
        eventually(lambda before=before: sum(executed(workspace).values()) > before + 5, 30, "more to be executed")  # type: ignore[misc]
        daemon.crash()
        daemon.start()
    rows = [ended(daemon, run_id) for run_id in (*run_ids, last)]
    states = Counter(row["state"] for row in rows)
    done = executed(workspace)
    assert max(done.values()) == 1
    # a start that was written when the daemon died, and that no worker had got, is not made again
    assert set(states) <= {"completed", "crashed"} and states["crashed"] <= 3, states
    for run_id, row in zip((*run_ids, last), rows, strict=True):
        assert (row["state"] == "completed") == (done[run_id] == 1), row
    assert daemon.call("run", **key)["request_id"] == last


def test_workers_that_die_cost_no_run_but_the_one_they_had(daemon: Daemon, tmp_path: Path) -> None:  # fault 1
    name = "detached-dying"
    daemon.deploy(write_agent(tmp_path / name, AGENT, **ONE_WORKER))
    workspace = workspace_of(daemon, name)
    run_ids = [detach(daemon, name, n=n, work_s=0.005) for n in range(100)]
    for count in (10, 40, 70):
        eventually(lambda count=count: sum(executed(workspace).values()) > count, 30, "more to be executed")  # type: ignore[misc]
        for worker in daemon.call("agent.show", agent=name)["workers"]:
            if worker["pid"]:
                psutil.Process(worker["pid"]).kill()
    rows = {run_id: ended(daemon, run_id) for run_id in run_ids}
    done = executed(workspace)
    states = Counter(row["state"] for row in rows.values())
    assert max(done.values()) == 1
    assert set(states) <= {"completed", "crashed"} and states["crashed"] <= 3, states
    assert all(done[run_id] == 1 for run_id, row in rows.items() if row["state"] == "completed")


def test_waiting_for_a_run_costs_its_connection_nothing(daemon: Daemon, agent: str) -> None:
    """A wait is an answer that comes later: others on the same connection do not wait with it."""
    run_id = detach(daemon, agent, until="go-free")
    with daemon.connect() as control:
        waiting = control.send("run.show", run_id=run_id, wait=30)
        health = control.send("health")
        assert control.receive()["id"] == health
        (workspace_of(daemon, agent) / "go-free").touch()
        answer = control.receive()
    assert (answer["id"], answer["result"]["state"]) == (waiting, "completed")


def test_a_run_in_progress_is_seen_by_who_waits_from_elsewhere(daemon: Daemon, agent: str) -> None:
    """Also one whose own caller waits, and which may not be in the log yet."""
    with daemon.connect() as control:
        events = control.stream("run", agent=agent, input={"until": "go-else", "n": 4}, stream=True)
        run_id = next(events)["params"]["data"]["request_id"]
        shown: list[Any] = []
        watcher = threading.Thread(target=lambda: shown.append(daemon.call("run.show", run_id=run_id, wait=30)))
        watcher.start()
        (workspace_of(daemon, agent) / "go-else").touch()
        answers = [frame["result"] for frame in events if "result" in frame]
        watcher.join()
    assert answers[0]["result"] == shown[0]["result"]


