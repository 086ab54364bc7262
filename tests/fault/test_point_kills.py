"""The daemon is killed at an exact point of its start, its stop, or its log: the next one starts, and is whole."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

NewDaemon = Callable[..., Daemon]

COUNTS = """
turns = [0]

def handler(input_data):
    turns[0] += 1
    return turns[0]
"""

WAITS = """
import os, time, workspace

{declared} handler(input_data):
    while not os.path.exists(workspace.path("go")):
        time.sleep(0.01)
    return "waited"
"""


def killed(daemon: Daemon) -> None:
    """Wait until the daemon has been killed by its failpoint, and kill what outlived it."""
    assert daemon.died() == -signal.SIGKILL
    daemon.sweep()


@pytest.fixture
def stopped(new_daemon: NewDaemon, tmp_path: Path) -> Daemon:
    """A daemon that has stopped in order, with an agent and a session that has run."""
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "counts", COUNTS))
    daemon.call("run", agent="counts", input={}, session_id="s")
    daemon.stop()
    return daemon


def starts_whole(daemon: Daemon) -> None:
    daemon.env = {}
    daemon.start()
    assert daemon.call("status")["problems"] == []
    answer = daemon.call("run", agent="counts", input={}, session_id="s")
    assert (answer["result"], answer["session"]["context"]) == (1, "lost")
    assert [path.name for path in (daemon.state_dir / "tmp").iterdir()] == []
    assert daemon.stop() == 0 and not daemon.control_socket.exists()


@pytest.mark.parametrize("point", ["daemon-locked", "daemon-log-open", "daemon-doors-open"])
def test_a_start_that_was_killed_is_followed_by_a_whole_one(stopped: Daemon, point: str) -> None:
    # fault 44, with a kill in place of SIGTERM
    for _ in range(2):
        stopped.env = {"ORPHEUS_FAILPOINTS": f"{point}=kill"}
        with pytest.raises(AssertionError, match="exited with -9"):
            stopped.start()
    starts_whole(stopped)


def test_a_stop_that_was_killed_is_followed_by_a_whole_start(stopped: Daemon) -> None:
    # fault 44
    stopped.env = {"ORPHEUS_FAILPOINTS": "daemon-closing=kill"}
    stopped.start()
    assert stopped.process is not None
    stopped.process.terminate()
    killed(stopped)
    starts_whole(stopped)


@pytest.mark.parametrize(("point", "passing"), [
    ("runlog-committing", 1), ("runlog-committing", 5), ("runlog-committed", 1), ("runlog-committed", 5)])
def test_a_daemon_killed_at_a_commit_finds_its_log_whole(stopped: Daemon, point: str, passing: int) -> None:
    # fault 35
    stopped.env = {"ORPHEUS_FAILPOINTS": f"{point}=kill:{passing}"}
    stopped.start()
    rows = 0
    with stopped.connect() as control, pytest.raises((EOFError, ConnectionError)):
        while True:
            rows = control.call("status")["run_log"]["rows"]
            control.call("run", agent="counts", input={}, session_id="other")
    killed(stopped)
    starts_whole(stopped)
    stopped.start()
    assert stopped.call("status")["run_log"]["rows"] >= rows


def states(daemon: Daemon, agent: str) -> dict[str, str]:
    """The state of each of the agent's workers."""
    return {worker["id"]: worker["state"] for worker in daemon.call("agent.show", agent=agent)["workers"]}


@pytest.mark.parametrize("declared", ["def", "async def"])
def test_a_leaving_worker_brings_a_result_that_was_told_and_not_written(
    new_daemon: NewDaemon, tmp_path: Path, declared: str
) -> None:
    # fault 33: by the second commit, of the run's end, its caller has the answer and its worker was told to stop
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "waits", WAITS.format(declared=declared)))
    place = Path(daemon.call("workspace.info", agent="waits")["path"])
    daemon.crash()
    daemon.env = {"ORPHEUS_FAILPOINTS": "runlog-committing=kill:2"}
    daemon.start()
    # idle, so that the run begins at once: its start is in the first commit
    eventually(lambda: set(states(daemon, "waits").values()) == {"ready"}, what="the worker to be adopted")
    with daemon.connect() as control:
        control.send("run", agent="waits", input={})
        eventually(lambda: [run["state"] for run in daemon.call("run.list")["runs"]] == ["started"])
        daemon.call("restart", agent="waits")
        (place / "go").touch()
        answer = control.receive()["result"]
    assert daemon.died() == -signal.SIGKILL
    daemon.env = {}
    daemon.start()
    row = daemon.call("run.show", run_id=answer["request_id"], wait=10)
    assert (row["state"], row["result"]) == ("completed", answer["result"])
    eventually(lambda: answer["worker_id"] not in states(daemon, "waits"), what="it to leave all the same")
    assert daemon.call("run", agent="waits", input={})["result"] == "waited"


def test_a_daemon_that_stands_at_a_point_can_be_looked_at_and_goes_on(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # what `stall` is for: the version serves already, and is not current yet
    daemon = new_daemon(http=False, env={"ORPHEUS_FAILPOINTS": "deploy-promoted=stall"})
    process = daemon.process
    assert process is not None
    folder = write_agent(tmp_path / "counts", COUNTS)
    ctl = subprocess.Popen([sys.executable, "-m", "orpheusctl", "deploy", str(folder)], env=daemon.ctl_env,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    current = daemon.state_dir / "agents/counts/current"
    eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", 20.0,
               "the daemon to stand still")
    assert not current.exists()
    process.send_signal(signal.SIGCONT)
    assert ctl.communicate(timeout=20)[0].startswith(b"deployed counts version 1")
    assert current.read_text() == "1"


def test_a_daemon_that_fails_on_its_way_up_leaves_what_it_adopted_to_the_next(
    new_daemon: NewDaemon, tmp_path: Path
) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "counts", COUNTS))
    assert daemon.call("run", agent="counts", input={}, session_id="s")["result"] == 1
    daemon.crash()
    daemon.env = {"ORPHEUS_FAILPOINTS": "daemon-doors-open=raise"}
    assert daemon.spawn().wait(20) == 70
    daemon.env = {}
    daemon.start()
    answer = daemon.call("run", agent="counts", input={}, session_id="s")
    assert (answer["result"], answer["session"]["context"]) == (2, "warm")


def test_an_agent_that_is_damaged_keeps_no_other_from_starting(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    for name in ("damaged", "whole"):
        daemon.deploy(write_agent(tmp_path / name, COUNTS), env={})
        daemon.call("run", agent=name, input={}, session_id="s")
    daemon.crash()
    (daemon.state_dir / "agents/damaged/versions/1/env.json").write_text("{")
    daemon.start()
    assert "cannot start damaged: version 1 of damaged is damaged ("  in daemon.log
    answer = daemon.call("run", agent="whole", input={}, session_id="s")
    assert (answer["result"], answer["session"]["context"]) == (2, "warm")
    assert [row["name"] for row in daemon.call("agent.list")["agents"]] == ["whole"]
