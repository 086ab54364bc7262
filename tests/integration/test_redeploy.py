"""Redeploys of a real agent: nobody is refused, sessions stay and move once, what breaks is taken back."""

import base64
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Control, Daemon, bundle, given, write_agent
from tests.eventually import eventually
from tests.integration.traffic import Told, Traffic

COUNTING = """
import os, time
counts = {}

def handler(input_data):
    time.sleep(input_data.get("work_s", 0.003))
    session = input_data.get("session_id", "")
    counts[session] = counts.get(session, 0) + 1
    return {"version": VERSION, "pid": os.getpid(), "count": counts[session]}
"""
BROKEN_AT_IMPORT = "import no_such_module_anywhere\n\ndef handler(input_data): return 1\n"
CRASHES = "import os\n\ndef handler(input_data): os._exit(7)\n"


def write(tmp_path: Path, name: str, version: int, code: str = COUNTING, **settings: Any) -> Path:
    return write_agent(tmp_path / name, code.replace("VERSION", str(version)), **settings)


def deploy(daemon: Daemon, tmp_path: Path, name: str, version: int, code: str = COUNTING, **settings: Any) -> None:
    answer = daemon.deploy(write(tmp_path, name, version, code, **settings))
    assert answer["version"] == version


def run(daemon: Daemon, agent: str, session: str | None = None, **input: Any) -> Any:
    return daemon.call("run", agent=agent, input=input, session_id=session)


def show(daemon: Daemon, agent: str) -> Any:
    return daemon.call("agent.show", agent=agent)


def homes(told: list[Told]) -> list[Told]:
    """The first answer from each home that the session had."""
    at_home = [answer for answer in told if answer.context != "spilled"]
    return [answer for before, answer in zip([None, *at_home], at_home, strict=False)
            if before is None or before.worker != answer.worker]


# fault 73
# fault 76
@pytest.mark.deadline(240)
def test_ten_redeploys_under_traffic(daemon: Daemon, tmp_path: Path) -> None:
    """One is broken at import and one crashes at its first runs; no other run than those of that one fails.

    Pools of different sizes let some homes stay and others go, and one version lets nobody stay.
    """
    name, broken, crashing, hasty = "ten-redeploys", 4, 7, 10
    deploy(daemon, tmp_path, name, 1, scaling={"max_workers": 4})
    begun: list[float] = []
    with Traffic(daemon, name, 20) as traffic:
        for version in range(2, 12):
            serving = version - 1 if version - 1 not in (broken, crashing) else version - 2
            traffic.await_version(serving)
            begun.append(time.monotonic())
            settings = {"scaling": {"max_workers": 2 + version % 3},
                        "deploy": {"drain_seconds": 0 if version == hasty else 300}}
            if version == broken:
                with pytest.raises(OrpheusError, match="no_such_module_anywhere"):
                    daemon.deploy(write(tmp_path, name, version, BROKEN_AT_IMPORT, **settings))
            elif version == crashing:
                deploy(daemon, tmp_path, name, version, CRASHES, **settings)
                note = eventually(lambda: show(daemon, name)["rolled_back"], 20, "the rollback")
                assert note["version"] == crashing and "exit 7" in note["reason"]
                begun.append(begun[-1])  # putting the older version back is a change of its own
            else:
                deploy(daemon, tmp_path, name, version, **settings)
        traffic.await_version(11)
    assert traffic.broken == []
    assert show(daemon, name)["version"] == 11
    for _, error in traffic.refused:
        assert error.code == "worker-crashed", error.message
        assert daemon.call("run.show", run_id=error.details["request_id"])["version"] == crashing
    assert traffic.refused, "the version that crashes had no runs"
    for session, told in traffic.told.items():
        assert told[0].context == "new" or session in dict(traffic.refused), f"{session} began {told[0].context}"
        check_memory(told)
        moves = homes(told)[1:]
        for number, move in enumerate(moves):
            assert number < len(begun) and move.at > begun[number], f"{session} has moved more often than deployed"
    assert all(len(traffic.told[f"s{number}"]) > 20 for number in range(20))
    moves = [len(homes(traffic.told[f"s{number}"])) - 1 for number in range(20)]
    assert max(moves) >= 2, f"the story moves too few sessions: {moves}"


def check_memory(told: list[Told]) -> None:
    """What the answers say of the session's memory is what the handler saw of it."""
    seen: dict[str, int] = {}
    home = ""
    for answer in told:
        count = answer.result["count"]
        assert count == seen.get(answer.worker, 0) + 1
        seen[answer.worker] = count
        if answer.context == "warm":
            assert answer.worker == home or not home
        elif answer.context in ("new", "lost"):
            assert answer.worker != home
        home = home if answer.context == "spilled" else answer.worker


def test_a_session_stays_until_it_has_been_idle_for_the_drain_time(daemon: Daemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "moves-once", 1)
    before = run(daemon, "moves-once", "a")
    deploy(daemon, tmp_path, "moves-once", 2, deploy={"drain_seconds": 1.0})
    again = run(daemon, "moves-once", "a")
    assert (again["worker_id"], again["session"]["context"]) == (before["worker_id"], "warm")
    assert again["result"]["version"] == 1
    assert run(daemon, "moves-once", "b")["result"]["version"] == 2
    assert run(daemon, "moves-once")["result"]["version"] == 2
    outdated = {worker["version"]: worker["outdated"] for worker in show(daemon, "moves-once")["workers"]}
    assert outdated == {1: True, 2: False}
    eventually(lambda: len(show(daemon, "moves-once")["workers"]) == 1, 10, "the outdated worker to leave")
    moved = run(daemon, "moves-once", "a")
    assert (moved["session"]["context"], moved["result"]["version"]) == ("lost", 2)
    assert run(daemon, "moves-once", "a")["worker_id"] == moved["worker_id"]


def test_a_running_run_is_finished_by_the_version_it_began_on(daemon: Daemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "runs-on", 1)
    with daemon.connect() as control:
        for session in ("a", None):
            control.send("run", agent="runs-on", input={"work_s": 1.5}, session_id=session)
        eventually(lambda: daemon.call("agent.stats", agent="runs-on")["queue"]["processing"] == 2)
        deploy(daemon, tmp_path, "runs-on", 2, deploy={"drain_seconds": 0})
        answers = [control.receive()["result"]["result"] for _ in range(2)]
    assert [answer["version"] for answer in answers] == [1, 1]
    assert run(daemon, "runs-on", "a")["result"]["version"] == 2


# fault 76
def test_what_was_rolled_back_stays_so_when_the_daemon_starts_again(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = new_daemon()
    deploy(daemon, tmp_path, "agent", 1)
    deploy(daemon, tmp_path, "agent", 2, CRASHES)
    crashed = 0
    while show(daemon, "agent")["rolled_back"] is None:
        try:
            run(daemon, "agent")
        except OrpheusError as error:
            assert error.code == "worker-crashed"
            crashed += 1
    assert crashed == 3
    assert "version 2 keeps losing its workers and is rolled back, version 1 serves again" in daemon.log
    said = show(daemon, "agent")
    assert said["version"] == 1 and said["rolled_back"]["version"] == 2 and "exit 7" in said["rolled_back"]["reason"]
    assert abs(said["rolled_back"]["at"] - time.time()) < 60
    daemon.restart()
    eventually(lambda: run(daemon, "agent")["result"]["version"] == 1)
    assert show(daemon, "agent")["rolled_back"] == said["rolled_back"]
    assert daemon.call("agent.list")["agents"][0]["rolled_back"] == said["rolled_back"]
    assert "version 2 kept losing its workers" in daemon.ctl("list").stderr
    deploy(daemon, tmp_path, "agent", 3)
    assert show(daemon, "agent")["rolled_back"] is None


# fault 80
def test_rollback_deploys_an_older_version_again(new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = new_daemon()
    for version in (1, 2):
        deploy(daemon, tmp_path, "agent", version, env=[f"MODE={version}"])
    with pytest.raises(OrpheusError):
        daemon.deploy(write(tmp_path, "agent", 3, BROKEN_AT_IMPORT))
    deploy(daemon, tmp_path, "agent", 4)
    on_4 = run(daemon, "agent", "s")
    assert daemon.call("rollback", agent="agent") == {"name": "agent", "version": 2, "from": 4}
    assert run(daemon, "agent", "t")["result"]["version"] == 2
    stays = run(daemon, "agent", "s")
    assert (stays["worker_id"], stays["session"]["context"]) == (on_4["worker_id"], "warm")
    for version, words in ((3, "there is none; .* kept: 1, 2 \\(serves now\\), 4"), (2, "it serves now")):
        with pytest.raises(OrpheusError, match=words):
            daemon.call("rollback", agent="agent", version=version)
    done = daemon.ctl("rollback", "agent", "1")
    assert (done.stdout, done.returncode) == ("rolled agent back from version 2 to 1\n", 0)
    with pytest.raises(OrpheusError, match="nothing older than version 1"):
        daemon.call("rollback", agent="agent")
    daemon.restart()
    eventually(lambda: run(daemon, "agent")["result"]["version"] == 1)
    assert daemon.call("rollback", agent="agent", version=4)["from"] == 1
    deploy(daemon, tmp_path, "agent", 5)
    refused = httpx.post(f"{daemon.http}/v1/agents/agent/rollback", json={})
    assert refused.status_code == 403 and "orpheusctl rollback" in refused.json()["error"]


# fault 79
def test_changes_at_once_are_made_one_after_another(daemon: Daemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "takes-turns", 1)
    versions: list[int] = []
    failed: list[BaseException] = []

    def change(version: int) -> None:
        try:
            if version % 3 == 0:
                versions.append(daemon.call("restart", agent="takes-turns")["version"])
            else:
                versions.append(daemon.deploy(write(tmp_path / str(version), "takes-turns", version))["version"])
        except BaseException as error:
            failed.append(error)

    with Traffic(daemon, "takes-turns", 4) as traffic:
        threads = [threading.Thread(target=change, args=(number,)) for number in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == [] and traffic.broken == [] and traffic.refused == []
    assert max(versions) == 7 and len(versions) == 9
    assert show(daemon, "takes-turns")["version"] == 7


# fault 79
def test_a_deploy_that_waits_goes_on_when_its_caller_leaves(daemon: Daemon, tmp_path: Path) -> None:
    slow = "import time\ntime.sleep(1.0)\n" + COUNTING
    deploy(daemon, tmp_path, "nobody-waits", 1)
    with daemon.connect() as first:
        start_deploy(first, write(tmp_path, "nobody-waits", 2, slow))
        with daemon.connect() as second:
            start_deploy(second, write(tmp_path, "nobody-waits", 3))
            assert show(daemon, "nobody-waits")["version"] == 1
    eventually(lambda: show(daemon, "nobody-waits")["version"] == 3, 20, "the second deploy")
    assert run(daemon, "nobody-waits")["result"]["version"] == 3


def start_deploy(control: Control, folder: Path) -> None:
    """Ask for a deploy, and return as soon as the daemon has begun to serve the request."""
    upload = control.call("bundle.put", data=base64.b64encode(bundle(folder)).decode())["upload_id"]
    control.send("deploy", upload_id=upload, env=given(folder))
    id = control.send("health")
    while control.receive().get("id") != id:
        pass


# fault 75
def test_a_crash_loop_is_refused_with_the_reason_and_disturbs_nobody(daemon: Daemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "beside-the-loop", 1)
    switch = "import os\n\nif os.path.exists('/workspace/broken'): os._exit(1)\n" + COUNTING
    deploy(daemon, tmp_path, "crash-loop", 1, "import workspace\n" + switch.replace(
        "'/workspace/broken'", "workspace.path('broken')"), scaling={"min_workers": 3})
    place = Path(daemon.call("workspace.info", agent="crash-loop")["path"])
    # a deploy ends with its first worker ready: one that still loads its code would find it broken and leave by itself
    eventually(lambda: [w["state"] for w in show(daemon, "crash-loop")["workers"]] == ["ready"] * 3, 20, "all workers")
    (place / "broken").touch()
    with Traffic(daemon, "beside-the-loop", 3) as traffic:
        for worker in show(daemon, "crash-loop")["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        eventually(lambda: show(daemon, "crash-loop")["state"] == "quarantined", 20)
        refused = httpx.post(f"{daemon.http}/v1/agents/crash-loop/run", json={"input": {}})
        assert refused.status_code == 503 and 1 <= int(refused.headers["Retry-After"]) <= 30
        assert "crash-loop is refused for a while" in refused.json()["error"] and "exit 1" in refused.json()["error"]
        with pytest.raises(OrpheusError, match="does not start"):
            daemon.call("restart", agent="crash-loop")
        assert show(daemon, "crash-loop")["state"] == "quarantined"
        (place / "broken").unlink()
        daemon.call("restart", agent="crash-loop")
        assert run(daemon, "crash-loop")["result"]["version"] == 1
    assert traffic.refused == [] and traffic.broken == []
