"""A real daemon whose disk fills up, and one whose disk fails.

Full is waited out: new runs are refused, those under way finish and are recorded, and when there is space again
nobody has to do anything. A disk that fails ends the daemon.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.disks import fill_up, mounted

NewDaemon = Callable[..., Daemon]

#: Beyond what the daemon needs for itself: a reserve of 1 MiB, and a WAL of some.
STATE_BYTES = 12 * 1024 * 1024

#: `gate` waits while its workspace has a file `closed`; to remove a file needs no space.
GATE = """
import os, time

def handler(input_data):
    effect()
    while os.path.exists(workspace.path("closed")):
        time.sleep(0.01)
    return secret(input_data)
"""
QUICK = """
def handler(input_data):
    effect()
    return len(input_data.get("padding", ""))
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with two agents whose state directory is a file system of its own, and small."""
    directory = Path(tempfile.mkdtemp(prefix="orpheus-", dir="/tmp"))
    with mounted(directory / "state", STATE_BYTES):
        daemon = Daemon(directory=directory)
        try:
            daemon.start()
            daemon.deploy(witness(tmp_path / "gate", GATE, scaling={"min_workers": 4}))
            daemon.deploy(witness(tmp_path / "quick", QUICK))
            yield daemon
        finally:
            if daemon.process is not None:
                daemon.stop()
    shutil.rmtree(directory)


def log_state(daemon: Daemon) -> str:
    return str(daemon.call("status")["run_log"]["state"])


def whole(daemon: Daemon) -> bool:
    """What `python -m orpheusd.runlog.verify` says of a log."""
    done = subprocess.run(
        [sys.executable, "-m", "orpheusd.runlog.verify", str(daemon.state_dir / "runs.db")], stdout=subprocess.PIPE,
        timeout=60, check=False)
    return json.loads(done.stdout)["whole"] and done.returncode == 0


@pytest.mark.root
def test_a_full_disk_refuses_new_runs_finishes_old_ones_and_is_over_when_there_is_space(small: Daemon) -> None:
    # fault 47
    closed = small.state_dir / "workspaces/gate/closed"
    closed.touch()
    with Aftermath(small) as after:
        going = [after.run_in_background("gate", session_id=f"s{number}") for number in range(3)]
        effects = small.state_dir / "workspaces/gate/effects"
        eventually(lambda: effects.exists() and effects.read_bytes().count(b"\n") == 3, what="the runs to go on")
        filler = fill_up(small.state_dir)
        # what was accepted before the disk was found full is executed, and recorded
        refused = eventually(
            lambda: (answer := after.run("quick", {"padding": "x" * 50_000})).code == "overloaded" and answer, 30.0,
            "a run to be refused")
        assert "runs cannot be recorded now (the disk is full" in refused.message
        assert "orpheusctl status" in refused.message
        eventually(lambda: not small.call("status")["run_log"]["pending_changes"], what="all of that to be written")
        after.refuses("overloaded", "run", agent="quick", input={})
        assert over_http(small) == (503, "overloaded")
        status = small.ctl("status")
        assert status.returncode == 0 and "PROBLEM: new runs are refused: the disk is full" in status.stderr
        closed.unlink()
        answers = [one.outcome() for one in going]
        assert [answer.code for answer in answers] == [""] * 3
        # in the space that was held back
        eventually(lambda: {small.call("run.show", run_id=answer.run_id)["state"] for answer in answers} == {
            "completed"}, what="the runs that were under way to be recorded")
        assert log_state(small) == "disk-full"
        filler.unlink()
        eventually(lambda: not small.call("status")["problems"], what="runs to be taken again")
        assert after.run("quick", {"padding": "xyz"}).result == 3
        assert after.run("gate", session_id="s1").context == "warm"
    assert small.stop() == 0
    assert whole(small)
    small.start()
    assert small.call("status")["problems"] == []
    assert small.call("run.show", run_id=answers[0].run_id)["state"] == "completed"


def over_http(daemon: Daemon) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{daemon.http}/v1/agents/quick/run", b'{"input": {}}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=20):
        pass
    with caught.value as answer:
        assert answer.headers["Retry-After"]
        return answer.code, json.loads(answer.read())["code"]


@pytest.mark.root
def test_a_deploy_to_a_full_disk_says_so_and_leaves_nothing(small: Daemon, tmp_path: Path) -> None:
    # fault 47
    filler = fill_up(small.state_dir)
    big = witness(tmp_path / "bigger/quick", QUICK)
    (big / "data").write_bytes(b"0" * 100_000)
    with pytest.raises(OrpheusError, match="No space left on device"):
        small.deploy(big)
    eventually(lambda: not list((small.state_dir / "tmp").iterdir()), what="the upload to be gone with its sender")
    assert [path.name for path in (small.state_dir / "agents/quick/versions").iterdir()] == ["1"]
    assert small.call("agent.show", agent="quick")["version"] == 1
    filler.unlink()
    eventually(lambda: not small.call("status")["problems"], what="runs to be taken again")
    with Aftermath(small) as after:
        assert small.deploy(big)["version"] > 1
        assert after.run("quick", {"padding": "xyz"}).result == 3


@pytest.mark.root
def test_a_start_on_a_full_disk_forgets_nothing(small: Daemon) -> None:
    # fault 47
    assert small.call("run", agent="quick", input={}, session_id="s")["session"]["context"] == "new"
    small.stop()
    filler = fill_up(small.state_dir)
    with pytest.raises(AssertionError, match=r"exited with 70(?s:.*)cannot open the run log .*: the disk is full"):
        small.start()
    assert "Traceback" not in small.log
    assert [path.name for path in small.state_dir.glob("*damaged*")] == []
    filler.unlink()
    small.start()
    assert small.call("status")["problems"] == []
    assert small.call("run", agent="quick", input={}, session_id="s")["session"]["context"] == "lost"


SAVER = """
import os

def handler(input_data):
    effect()
    if input_data.get("remember"):
        workspace.session["kept"] = "x" * input_data["remember"]
    if input_data.get("save"):
        workspace.save("notes.txt", "y" * input_data["save"])
    return [len(workspace.load("notes.txt", "")), len(workspace.session.get("kept", ""))]
"""


@pytest.mark.root
def test_a_full_workspace_is_its_agents_own_trouble(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 53
    directory = Path(tempfile.mkdtemp(prefix="orpheus-", dir="/tmp"))
    with mounted(directory / "state/workspaces/saver", 256 * 1024) as workspace:
        daemon = new_daemon(directory=directory)
        daemon.deploy(witness(tmp_path / "saver", SAVER))
        daemon.deploy(witness(tmp_path / "quick", QUICK))
        try:
            with Aftermath(daemon) as after:
                assert after.run("saver", {"save": 10, "remember": 10}, session_id="s").result == [10, 10]
                fill_up(workspace)
                for too_much in ({"save": 100_000}, {"remember": 100_000}):
                    failed = after.run("saver", too_much, session_id="s")
                    assert failed.code == "handler-failed" and "No space left on device" in failed.message
                # what was there before is whole, and nobody else has noticed
                assert after.run("saver", session_id="s").result == [10, 10]
                assert after.run("quick", {"padding": "xyz"}).result == 3
                (workspace / "filler").unlink()
                assert after.run("saver", {"save": 20, "remember": 20}, session_id="s").result == [20, 20]
            assert sorted(path.name for path in workspace.iterdir()) == [".locks", ".sessions", "effects", "notes.txt"]
        finally:
            daemon.stop()


def test_a_disk_that_fails_ends_the_daemon_and_the_next_one_goes_on(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 48, with an exception in place of the failed fsync that tests/fault/test_runlog_disk.py has
    daemon = new_daemon(env={"ORPHEUS_FAILPOINTS": "runlog-committing=raise:2"})
    daemon.deploy(write_agent(tmp_path / "quick", "def handler(input_data): return 1"))
    with daemon.connect() as control:
        first = control.call("run", agent="quick", input={})["request_id"]
        eventually(lambda: daemon.call("status")["run_log"]["commits"] == 1, what="the first run to be recorded")
        control.call("run", agent="quick", input={})
        process = daemon.process
        assert process is not None and process.wait(20) == 70
    assert "the run log has failed for good" in daemon.log
    daemon.kill()
    daemon.env = {}
    daemon.start()
    assert daemon.call("status")["problems"] == []
    assert daemon.call("run.show", run_id=first)["state"] == "completed"
