"""Idempotency keys on a real daemon: one execution and one answer, at both doors, across restarts."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

AGENT = """
import os, time, workspace

def handler(input_data):
    with open(workspace.path("executed"), "a") as file:
        file.write(f"{workspace.run.id}\\n")
    while input_data.get("until") and not os.path.exists(workspace.path(input_data["until"])):
        time.sleep(0.005)
    if input_data.get("fail"):
        raise ValueError("as asked")
    if input_data.get("die"):
        os._exit(7)
    return {"n": input_data.get("n"), "pid": os.getpid(), "large": 2 ** 70, "part": 0.1}
"""
NAME = "keyed"


@pytest.fixture(scope="module")
def agent(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / NAME, AGENT))
    return NAME


def workspace_of(daemon: Daemon, name: str = NAME) -> Path:
    return Path(daemon.call("workspace.info", agent=name)["path"])


def executed(daemon: Daemon, name: str = NAME) -> Counter[str]:
    file = workspace_of(daemon, name) / "executed"
    return Counter(file.read_text().split()) if file.exists() else Counter()


def run(daemon: Daemon, key: str, input: Any, **params: Any) -> Any:
    return daemon.call("run", agent=NAME, input=input, idempotency_key=key, **params)


def refused(daemon: Daemon, key: str, input: Any, **params: Any) -> OrpheusError:
    with pytest.raises(OrpheusError) as raised:
        run(daemon, key, input, **params)
    return raised.value


def post(http: httpx.Client, key: str, input: Any, **headers: str) -> httpx.Response:
    return http.post(f"/v1/agents/{NAME}/run", json={"input": input}, headers={"Idempotency-Key": key, **headers})


@pytest.fixture
def http(daemon: Daemon, agent: str) -> Any:
    with httpx.Client(base_url=daemon.http or "", timeout=60) as client:
        yield client


def test_who_asks_again_gets_the_same_bytes(http: httpx.Client, daemon: Daemon) -> None:
    """At once, when the log may not have it yet, and later, when nothing else has."""
    first = post(http, "same", {"n": 1})
    at_once = post(http, "same", {"n": 1})
    eventually(lambda: daemon.call("status")["run_log"]["pending_changes"] == 0)
    later = post(http, "same", {"n": 1})
    assert first.status_code == 200 and first.json()["result"]["large"] == 2**70
    assert first.content == at_once.content == later.content
    assert first.headers["X-Orpheus-Worker"] == later.headers["X-Orpheus-Worker"]
    assert executed(daemon)[first.json()["request_id"]] == 1


def test_a_failure_is_an_answer_too(http: httpx.Client, daemon: Daemon) -> None:
    for key, input, status in (("fails", {"fail": True}, 500), ("dies", {"die": True}, 502)):
        first = post(http, key, input, **{"X-Session-ID": "user-1"})
        assert first.status_code == status and first.json()["request_id"]
        again = post(http, key, input, **{"X-Session-ID": "user-1"})
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert executed(daemon)[first.json()["request_id"]] == 1


def test_the_same_key_for_something_else_is_a_conflict(daemon: Daemon, agent: str) -> None:
    first = run(daemon, "mine", {"n": 1, "m": 2}, session_id="s")["request_id"]
    for input, params in (
        ({"n": 2}, {"session_id": "s"}), ({"n": 1, "m": 2}, {}), ({"n": 1, "m": 2}, {"session_id": "t"}),
        ({"n": 1, "m": 2}, {"session_id": "s", "timeout_s": 5}),
        ({"n": 1, "m": 2}, {"session_id": "s", "overlap": "queue"}),
    ):
        error = refused(daemon, "mine", input, **params)
        assert error.code == "conflict" and first in error.message
    # the order of the names in an object is nobody's business
    assert run(daemon, "mine", {"m": 2, "n": 1}, session_id="s")["request_id"] == first
    assert run(daemon, "yours", {"n": 2})["request_id"] != first


def test_two_at_the_same_moment_are_one_execution(daemon: Daemon, agent: str) -> None:
    for attempt in range(10):
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: run(daemon, f"rush-{attempt}", {"n": 5}), range(8)))  # noqa: B023
        assert all(answer == answers[0] for answer in answers)
        assert executed(daemon)[answers[0]["request_id"]] == 1


def test_who_asks_while_it_goes_on_waits_for_it(daemon: Daemon, agent: str) -> None:
    with daemon.connect() as one, daemon.connect() as two:
        params = {"agent": agent, "input": {"until": "go-wait", "n": 3}, "idempotency_key": "going"}
        one.send("run", **params)
        eventually(lambda: daemon.call("agent.stats", agent=NAME)["queue"]["processing"], what="the run to begin")
        two.send("run", **params, stream=True)
        accepted = two.receive()["params"]
        (workspace_of(daemon) / "go-wait").touch()
        first, second = one.receive()["result"], two.receive()["result"]
    assert accepted == {"id": 1, "event": "accepted", "data": {"request_id": first["request_id"]}}
    assert first == second and executed(daemon)[first["request_id"]] == 1


def test_a_run_that_was_never_executed_does_not_bind_its_key(daemon: Daemon, tmp_path: Path) -> None:
    name = "keyed-alone"
    daemon.deploy(write_agent(tmp_path / name, AGENT, scaling={
        "min_workers": 1, "max_workers": 1, "queue_size": 1, "queue_timeout_seconds": 1}))
    workspace = workspace_of(daemon, name)
    with daemon.connect() as control:
        control.send("run", agent=name, input={"until": "go"})
        eventually(lambda: executed(daemon, name), what="the worker to be busy")
        asked = {"agent": name, "input": {"n": 1}, "idempotency_key": "unbound"}
        errors = []
        waiting = control.send("run", **asked)
        eventually(lambda: daemon.call("agent.stats", agent=name)["queue"]["depth"] == 1)
        with pytest.raises(OrpheusError) as raised:  # the queue is full
            daemon.call("run", agent=name, input={"n": 2}, idempotency_key="refused")
        errors.append(raised.value.code)
        answer = control.receive()
        assert answer["id"] == waiting
        errors.append(answer["error"]["data"]["code"])
        began = daemon.call("run", **asked, detach=True)["request_id"]
        daemon.call("run.cancel", run_id=began)
        (workspace / "go").touch()
        assert "result" in control.receive()
    assert errors == ["overloaded", "timed-out"]
    for key in ("unbound", "refused"):
        done = daemon.call("run", agent=name, input={"n": 9}, idempotency_key=key)
        assert done["result"]["n"] == 9


def test_it_works_without_waiting(http: httpx.Client, daemon: Daemon) -> None:
    detached = {"Prefer": "respond-async"}
    first = post(http, "later", {"until": "go-later", "n": 6}, **detached)
    again = post(http, "later", {"until": "go-later", "n": 6}, **detached)
    assert (first.status_code, again.status_code) == (202, 202) and first.content == again.content
    assert first.headers["Location"] == again.headers["Location"]
    (workspace_of(daemon) / "go-later").touch()
    waited = post(http, "later", {"until": "go-later", "n": 6})
    run_id = first.json()["request_id"]
    assert (waited.status_code, waited.json()["request_id"], waited.json()["result"]["n"]) == (200, run_id, 6)
    afterwards = post(http, "later", {"until": "go-later", "n": 6}, **detached)
    assert (afterwards.status_code, afterwards.json()["request_id"]) == (202, run_id)
    assert executed(daemon)[run_id] == 1


def test_the_command_says_a_key(daemon: Daemon, agent: str) -> None:
    first, again = [daemon.ctl("run", agent, '{"n": 8}', "--idempotency-key", "from ctl") for _ in range(2)]
    assert first.returncode == 0 and first.stdout == again.stdout
    ids = [daemon.ctl("run", agent, '{"n": 8}', "--idempotency-key", "from ctl", "--async").stdout for _ in range(2)]
    assert ids[0] == ids[1]
    shown = json.loads(daemon.ctl("show", ids[0].strip(), "--json").stdout)
    assert (shown["idempotency_key"], shown["result"]["n"]) == ("from ctl", 8)
    other = daemon.ctl("run", agent, '{"n": 9}', "--idempotency-key", "from ctl")
    assert (other.returncode, other.stdout) == (1, "") and "was used for another request" in other.stderr


@pytest.mark.parametrize("key", ["", "x" * 256, "grüße", "a\nb", "\x00"])
def test_a_key_is_printable_ascii(daemon: Daemon, agent: str, key: str) -> None:
    assert refused(daemon, key, {}).code == "invalid-request"


def test_keys_survive_restarts_and_kills(new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / NAME, AGENT, scaling={"min_workers": 1, "max_workers": 1}))
    first = run(daemon, "before", {"n": 1})
    daemon.restart()
    assert run(daemon, "before", {"n": 1}) == first
    assert refused(daemon, "before", {"n": 2}).code == "conflict"

    busy = daemon.call("run", agent=NAME, input={"until": "go"}, detach=True)["request_id"]
    eventually(lambda: executed(daemon)[busy])
    waiting = run(daemon, "waits", {"n": 3}, detach=True)["request_id"]
    daemon.kill()
    daemon.start()
    # queued again under its key: who asks gets that run
    assert run(daemon, "waits", {"n": 3}, detach=True)["request_id"] == waiting
    assert refused(daemon, "waits", {"n": 4}).code == "conflict"
    answer = run(daemon, "waits", {"n": 3})
    assert (answer["request_id"], answer["result"]["n"]) == (waiting, 3)
    assert run(daemon, "before", {"n": 1}) == first
    assert max(executed(daemon).values()) == 1


def test_a_run_that_was_killed_with_the_daemon_is_not_executed_again(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:  # fault 32
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / NAME, AGENT))
    run_id = run(daemon, "killed", {"until": "never"}, detach=True)["request_id"]
    eventually(lambda: executed(daemon)[run_id], what="the run to begin")
    daemon.kill()
    daemon.start()
    error = refused(daemon, "killed", {"until": "never"})
    assert (error.code, error.details["request_id"]) == ("worker-crashed", run_id)
    assert executed(daemon)[run_id] == 1


@pytest.mark.parametrize("point", [
    "",  # as soon as the handler says that it is executed
    "run-dispatched=kill",  # before the log has a row
    "runlog-committed=kill",  # when it has one
])
def test_who_asks_again_after_a_kill_is_never_a_second_execution(
        new_daemon: Callable[..., Daemon], tmp_path: Path, point: str) -> None:  # fault 32
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / NAME, AGENT, scaling={"min_workers": 2}))
    place = workspace_of(daemon)
    daemon.crash()
    daemon.env = {"ORPHEUS_FAILPOINTS": point}
    daemon.start()
    with daemon.connect() as control:
        control.send("run", agent=NAME, input={"until": "go"}, idempotency_key="once")
        if point:
            assert daemon.died() == -signal.SIGKILL
        else:
            eventually((place / "executed").exists, what="the handler to begin")
            daemon.crash()
    daemon.env = {}
    daemon.start()
    (place / "go").touch()
    times = 1
    try:
        run(daemon, "once", {"until": "go"})
    except OrpheusError as error:
        assert point == "runlog-committed=kill" and error.code == "worker-crashed"
        times = 0
    eventually(lambda: not daemon.call("agent.stats", agent=NAME)["queue"]["processing"], what="all to be over")
    assert executed(daemon).total() == times
