"""The daemon dies, at exact points and at any, and the next one takes over what outlived it; rows 30 to 40 of
docs/faults.md.

What a template and a worker do by themselves is in `tests/integration/test_worker_side_redial.py`, what the core makes
of it in `tests/unit/test_core_adoption.py`. Here a caller asks before and after, and everything must agree.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.errors import OrpheusError
from orpheusd.wire.worker import PROTOCOL_VERSION
from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness

NewDaemon = Callable[..., Daemon]

#: A counter in memory, which only the same process can go on counting; `wait_for` is a file that lets a run end.
COUNTER = """
import time
turns = {}

def handler(input_data):
    turn = turns[workspace.run.session] = turns.get(workspace.run.session, 0) + 1
    effect()
    deadline = time.monotonic() + input_data.get("seconds", 0)
    while time.monotonic() < deadline and not os.path.exists(workspace.path(input_data.get("wait_for", "none"))):
        time.sleep(0.005)
    return {"turn": turn, "pid": os.getpid(), "secret": secret(input_data)}
"""
WAITS = """
import asyncio

async def handler(input_data):
    while not os.path.exists(workspace.path("go")):
        await asyncio.sleep(0.01)
    effect()
    return {"secret": secret(input_data)}
"""

#: What faults.md allows from the ready daemon to the recorded run.
RECORDED_S = 2.0


def state_of(daemon: Daemon, run_id: str) -> dict[str, Any]:
    try:
        shown: dict[str, Any] = daemon.call("run.show", run_id=run_id)
    except OrpheusError as error:
        assert error.code == "not-found"
        return {"state": "queued"}  # what was accepted is written some milliseconds later
    return shown


def ended(daemon: Daemon, run_id: str, timeout_s: float = RECORDED_S) -> dict[str, Any]:
    """The run's row once it has an end."""
    eventually(
        lambda: state_of(daemon, run_id)["state"] not in ("queued", "started"), timeout_s, f"the end of {run_id}")
    return state_of(daemon, run_id)


def workspace(daemon: Daemon, agent: str) -> Path:
    return Path(daemon.call("workspace.info", agent=agent)["path"])


def workers(daemon: Daemon, agent: str) -> dict[str, int]:
    """Pid by id."""
    return {row["id"]: row["pid"] for row in daemon.call("agent.show", agent=agent)["workers"]}


def gone(process: psutil.Process) -> bool:
    """Whether it has died; an orphan may stay a zombie for as long as these tests take."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def at_rest(daemon: Daemon) -> bool:
    """Whether nothing is going on, and all that did is in the log."""
    rows = daemon.call("agent.show", agent="counter")["workers"]
    idle = all(row["state"] == "ready" and not row["busy"] for row in rows)
    return idle and not daemon.call("status")["run_log"]["pending_changes"]


def test_a_run_outlives_the_daemon_and_its_session_goes_on(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 30, 33, 36
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    with Aftermath(daemon) as after:
        assert after.run("counter", session_id="s").result["turn"] == 1
        going = after.run_in_background("counter", {"seconds": 3.0}, session_id="s")
        run_id = going.run_id
        before = workers(daemon, "counter")
        daemon.crash()
        daemon.start()
        eventually(lambda: workers(daemon, "counter") == before, what="the worker to be adopted")
        eventually(lambda: state_of(daemon, run_id)["state"] == "started", what="its start in the log")
        row = ended(daemon, run_id, 5.0)
        assert (row["state"], row["result"]["turn"], row["context"], row["turn"]) == ("completed", 2, "warm", 2)
        assert row["duration_ms"] >= 2900, "what it took before the daemon died counts"
        last = after.run("counter", session_id="s")
        assert (last.context, last.result["turn"], last.answer["session"]["turn"]) == ("warm", 3, 3)


@pytest.mark.slow
@pytest.mark.deadline(90)
def test_a_run_of_twenty_seconds_outlives_the_daemon(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 30
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    with Aftermath(daemon) as after:
        after.run("counter", session_id="s")
        run_id = after.run_in_background("counter", {"seconds": 20.0}, session_id="s").run_id
        daemon.crash()
        daemon.start()
        row = ended(daemon, run_id, 25.0)
        assert (row["state"], row["result"]["turn"]) == ("completed", 2)
        assert after.run("counter", session_id="s").result["turn"] == 3


def test_a_hundred_runs_in_flight_are_all_completed(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 30
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "many", WAITS, concurrency=25, scaling={"min_workers": 4, "max_workers": 4}))
    with Aftermath(daemon) as after:
        going = [after.run_in_background("many", session_id=f"s-{number}") for number in range(100)]
        run_ids = [each.run_id for each in going]
        eventually(lambda: daemon.call("agent.stats", agent="many")["queue"]["processing"] == 100, what="all to start")
        place = workspace(daemon, "many")
        daemon.crash()
        (place / "go").touch()
        daemon.start()
        ready_at = time.monotonic()
        states = {run_id: ended(daemon, run_id)["state"] for run_id in run_ids}
        assert time.monotonic() - ready_at < RECORDED_S
        assert set(states.values()) == {"completed"}


@pytest.mark.parametrize(("point", "state", "effects"), [
    ("run-accepted", "crashed", 0),  # fault 31
    ("run-dispatching", "crashed", 0),  # fault 32
    ("run-dispatched", "completed", 1),
    ("run-ended", "completed", 1),  # fault 33
    ("run-answered", "completed", 1),
])
def test_a_kill_at_each_point_of_a_run(
    new_daemon: NewDaemon, tmp_path: Path, point: str, state: str, effects: int
) -> None:
    # fault 31, 32, 33
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    first = daemon.call("run", agent="counter", input={"secret": "s"}, session_id="s")
    assert first["result"]["turn"] == 1
    ended(daemon, first["request_id"])
    daemon.crash()
    daemon.env["ORPHEUS_FAILPOINTS"] = f"{point}=kill"
    daemon.start()
    place = workspace(daemon, "counter")
    with suppress(EOFError, OSError):
        daemon.call("run", agent="counter", input={"secret": "s"}, session_id="s")
    assert daemon.died() == -signal.SIGKILL
    daemon.env.pop("ORPHEUS_FAILPOINTS")
    daemon.start()
    if effects:
        eventually(lambda: len(daemon.call("run.list")["runs"]) == 2)
    runs = daemon.call("run.list")["runs"]
    # one that was accepted some milliseconds before, and acknowledged to nobody, may not have been written
    states = [ended(daemon, run["run_id"])["state"] for run in runs]
    assert states in ([state, "completed"], ["completed"][effects:])
    with Aftermath(daemon) as after:
        written = (place / "effects").read_text().split()[::2]
        assert len(written) == 1 + effects == len(set(written))
        again = after.run("counter", session_id="s")
        assert (again.context, again.result["turn"]) == ("warm", 2 + effects)
        assert again.answer["session"]["turn"] == 2 + effects


def test_a_kill_while_the_pool_is_born_leaves_no_orphan(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 34
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    daemon.stop()
    daemon.env["ORPHEUS_FAILPOINTS"] = "template-started=kill"
    with suppress(AssertionError):
        daemon.start()
        assert daemon.died() == -signal.SIGKILL
    assert daemon.process is None
    daemon.env.pop("ORPHEUS_FAILPOINTS")
    daemon.start()
    assert daemon.call("run", agent="counter", input={})["result"]["turn"] == 1
    eventually(lambda: len(list((daemon.runtime_dir / "born").iterdir())) == 1, 10.0, "one template")


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.deadline(400)])])
def test_restarts_under_load_never_make_two_owners(new_daemon: NewDaemon, tmp_path: Path, times: int) -> None:
    # fault 36
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER, scaling={"min_workers": 3}))
    with Aftermath(daemon) as after:
        turns = dict.fromkeys((f"s-{number}" for number in range(6)), 0)
        for session in turns:
            turns[session] = after.run("counter", session_id=session).result["turn"]
        for _ in range(times):
            going = [after.run_in_background("counter", {"seconds": 0.2}, session_id=session) for session in turns]
            run_ids = [each.run_id for each in going]
            pids = workers(daemon, "counter")
            daemon.crash()
            daemon.start()
            eventually(lambda pids=pids: pids.items() <= workers(daemon, "counter").items() and at_rest(daemon))
            for row in [ended(daemon, row["run_id"], 5.0) for row in daemon.call("run.list", limit=20)["runs"]]:
                # those that waited were never started, and no memory of them is anywhere
                if row["run_id"] in run_ids and row["state"] == "completed" and row["context"] == "warm":
                    turns[row["session_id"]] += 1
                    assert row["result"]["turn"] == turns[row["session_id"]]
            for session in turns:
                answer = after.run("counter", session_id=session, affinity="strict")
                turns[session] += 1
                assert (answer.context, answer.result["turn"]) == ("warm", turns[session])


def test_a_worker_that_dies_while_the_daemon_is_down_has_crashed(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 37
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    with Aftermath(daemon) as after:
        after.run("counter", session_id="s")
        run_id = after.run_in_background("counter", {"seconds": 30.0}, session_id="s").run_id
        eventually(lambda: state_of(daemon, run_id)["state"] == "started", what="its start in the log")
        worker = psutil.Process(workers(daemon, "counter").popitem()[1])
        daemon.crash()
        worker.kill()
        eventually(lambda: gone(worker), what="the worker to die")
        daemon.start()
        row = ended(daemon, run_id)
        assert (row["state"], row["code"], row["exit_cause"]) == ("crashed", "worker-crashed", "cause unknown")
        assert after.run("counter", session_id="s").context == "lost"


def test_a_worker_that_hangs_at_adoption_is_killed(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 38
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER, scaling={"min_workers": 2}))
    with Aftermath(daemon, settle_s=10.0) as after:
        hung_id = after.run("counter", session_id="hangs").worker
        other = after.run("counter", session_id="goes-on")
        assert other.worker != hung_id
        eventually(lambda: len(daemon.call("run.list", state="completed")["runs"]) == 2, what="the record of both")
        hung = psutil.Process(workers(daemon, "counter")[hung_id or ""])
        hung.suspend()
        daemon.crash()
        started_at = time.monotonic()
        daemon.start()
        assert time.monotonic() - started_at < 6.0
        assert after.run("counter", session_id="goes-on").context == "warm"
        assert after.run("counter", session_id="hangs").context == "lost"
        assert time.monotonic() - started_at < 8.0
        assert gone(hung)


def test_a_worker_that_cannot_hear_is_waited_for_while_it_has_a_run(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 38: in C with the interpreter's lock held nobody can dial; the run's own deadline decides
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "deaf", """
        import ctypes, time

        libc = ctypes.PyDLL(None)

        def handler(input_data):
            effect()
            # usleep, without giving up the interpreter's lock; a signal interrupts it, so again until the time is over
            deadline = time.monotonic() + input_data.get("seconds", 0)
            while (left_s := deadline - time.monotonic()) > 0:
                libc.usleep(int(left_s * 1e6))
            return {"pid": os.getpid(), "secret": secret(input_data)}
        """, scaling={"min_workers": 2}))
    with Aftermath(daemon, settle_s=15.0) as after:
        first = after.run("deaf", session_id="s")
        run_id = after.run_in_background("deaf", {"seconds": 7.0}, session_id="s").run_id
        eventually(lambda: state_of(daemon, run_id)["state"] == "started", what="its start in the log")
        daemon.crash()
        daemon.start()
        spilled = after.run("deaf", session_id="s")
        assert spilled.context in ("spilled", "warm") and (spilled.context == "warm" or spilled.worker != first.worker)
        assert ended(daemon, run_id, 10.0)["state"] == "completed"
        again = after.run("deaf", session_id="s")
        assert (again.context, again.worker) == ("warm", first.worker)


DIALS = """
import hmac, json, os, socket, sys
record = json.loads(open(sys.argv[1]).read())
nonce = hmac.new(bytes.fromhex(record["secret"]), record["template"].encode(), "sha256").hexdigest()[:32]
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[2])
hello = {"type": "hello", "protocol": int(sys.argv[3]), "role": "template", "id": record["template"],
         "nonce": sys.argv[4] or nonce}
sock.sendall(json.dumps(hello).encode() + b"\\n")
print(json.dumps(sock.recv(4096).decode()), flush=True)
"""


def dial(daemon: Daemon, protocol: int, nonce: str = "") -> "subprocess.CompletedProcess[str]":
    """Somebody says hello in the place of the daemon's one template."""
    record, = (daemon.runtime_dir / "born").iterdir()
    sock = daemon.runtime_dir / "t" / record.stem / "worker.sock"
    return subprocess.run([sys.executable, "-c", textwrap.dedent(DIALS), str(record), str(sock), str(protocol), nonce],
                          capture_output=True, text=True, timeout=10, check=False)


@pytest.mark.parametrize(("protocol", "nonce", "killed"), [(99, "", True), (PROTOCOL_VERSION, "0" * 32, False)])
def test_who_says_hello_wrongly_is_never_believed(
    new_daemon: NewDaemon, tmp_path: Path, protocol: int, nonce: str, killed: bool
) -> None:
    # fault 39: of another protocol it is killed; fault 40: a stranger is not signalled
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    template = psutil.Process(workers(daemon, "counter").popitem()[1]).parent()
    assert template is not None
    template.suspend()
    daemon.crash()
    daemon.start()
    said = dial(daemon, protocol, nonce)
    assert said.returncode == (-signal.SIGKILL if killed else 0), said.stderr
    assert killed or json.loads(said.stdout) == "", "the connection was closed without a word"
    with Aftermath(daemon, settle_s=10.0) as after:
        assert after.run("counter", session_id="s").context == "new"
    # what is not heard for long is killed as well: here it was for what it said
    assert ("it speaks protocol 99" in daemon.log) == killed
    eventually(lambda: gone(template), 10.0)


def test_workers_leave_when_no_daemon_comes(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon(env={"ORPHEUS_ORPHAN_TTL_S": "0.5"})
    daemon.deploy(witness(tmp_path / "counter", COUNTER, scaling={"min_workers": 3}))
    family = daemon.family()
    daemon.crash()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    daemon.start()
    assert daemon.call("run", agent="counter", input={})["result"]["turn"] == 1


def test_a_stop_by_signal_leaves_nobody(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER, scaling={"min_workers": 3}))
    daemon.crash()
    daemon.start()
    eventually(lambda: len(workers(daemon, "counter")) == 3 and all(workers(daemon, "counter").values()))
    family = daemon.family() + [psutil.Process(pid) for pid in workers(daemon, "counter").values()]
    assert daemon.stop() == 0
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert list((daemon.runtime_dir / "born").iterdir()) == []


@pytest.mark.parametrize("isolation", ["bwrap", "none"])
def test_both_kinds_of_walls_outlive_the_daemon(new_daemon: NewDaemon, tmp_path: Path, isolation: str) -> None:
    # fault 36
    daemon = new_daemon(isolation=isolation)
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    for turn in (1, 2, 3):
        answer = daemon.call("run", agent="counter", input={"secret": "x"}, session_id="s")
        assert answer["result"]["turn"] == turn
        daemon.crash()
        daemon.start()
    eventually(lambda: workers(daemon, "counter") and all(workers(daemon, "counter").values()))
    before = workers(daemon, "counter")
    os.kill(next(iter(before.values())), signal.SIGKILL)
    eventually(lambda: workers(daemon, "counter") and not before.keys() & workers(daemon, "counter").keys())
    assert daemon.call("run", agent="counter", input={"secret": "x"}, session_id="s")["session"]["context"] == "lost"


def test_an_undeployed_agent_is_not_adopted(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "counter", COUNTER))
    worker = psutil.Process(workers(daemon, "counter").popitem()[1])
    daemon.crash()
    (daemon.state_dir / "agents" / "counter" / "current").unlink()
    daemon.start()
    eventually(lambda: gone(worker), what="the worker to die")
    with pytest.raises(OrpheusError, match="there is no agent counter"):
        daemon.call("run", agent="counter", input={})
    eventually(lambda: list((daemon.runtime_dir / "born").iterdir()) == [])
