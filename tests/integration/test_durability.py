"""`durability: disk`: nobody is told of an end that the disk does not have."""

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.runlog.queries import RunQueries
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

AGENT = """
import os, time, workspace

def handler(input_data):
    if input_data.get("fail"):
        raise ValueError("as asked")
    workspace.path("began").touch()
    while input_data.get("until") and not os.path.exists(workspace.path(input_data["until"])):
        time.sleep(0.005)
    return input_data
"""


@pytest.fixture
def daemon(new_daemon: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    one = new_daemon(env={"ORPHEUS_DURABILITY": "disk"})
    one.deploy(write_agent(tmp_path / "durable", AGENT))
    return one


def workspace_of(daemon: Daemon) -> Path:
    return Path(daemon.call("workspace.info", agent="durable")["path"])


def test_an_answer_comes_after_the_commit(daemon: Daemon) -> None:
    log = RunQueries(daemon.state_dir / "runs.db")
    with daemon.connect() as control:
        for number in range(20):
            run_id = control.call("run", agent="durable", input={"n": number}, stream=number % 2 == 0)["request_id"]
            detail = log.show(run_id)
            assert detail is not None and detail.run.state == "completed"
        for agent, input, state in (("durable", {"fail": True}, "failed"), ("nobody", {}, "rejected")):
            with pytest.raises(OrpheusError) as raised:
                control.call("run", agent=agent, input=input)
            detail = log.show(raised.value.details["request_id"])
            assert detail is not None and detail.run.state == state


def test_what_is_refused_is_not_accepted(daemon: Daemon) -> None:
    with pytest.raises(OrpheusError) as raised:
        daemon.call("run", agent="nobody", input={}, detach=True)
    assert raised.value.code == "not-found"


def going(daemon: Daemon, control: Any) -> None:
    control.send("run", agent="durable", input={"until": "go"})
    eventually((workspace_of(daemon) / "began").exists, what="the run to begin")


def test_an_end_that_cannot_be_written_is_not_told(daemon: Daemon) -> None:  # fault 48
    with daemon.connect() as control:
        going(daemon, control)
        (daemon.state_dir / "runs.db").rename(daemon.directory / "moved")
        # the log finds out, and the daemon goes with it
        assert daemon.died() == 70
        with suppress(EOFError, ConnectionError):
            error = control.receive()["error"]
            assert error["data"]["code"] == "internal" and "cannot be recorded" in error["message"]


def test_a_daemon_that_stops_still_answers(daemon: Daemon) -> None:
    with daemon.connect() as control:
        going(daemon, control)
        go = workspace_of(daemon) / "go"
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in daemon.log, what="the daemon to begin to stop")
        go.touch()
        assert control.receive()["result"]["result"] == {"until": "go"}
    assert daemon.stop() == 0


def test_what_runs_were_given_and_gave_is_not_kept_where_that_is_not_wanted(
    new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = new_daemon(env={"ORPHEUS_RUN_LOG_CAPTURE": "no"})
    daemon.deploy(write_agent(tmp_path / "durable", AGENT))
    secret = {"secret": "x"}
    kept = {}
    for name, params in (("plain", {}), ("keyed", {"idempotency_key": "k"})):
        run_id = daemon.call("run", agent="durable", input=secret, **params)["request_id"]
        kept[name] = daemon.call("run.show", run_id=run_id, wait=10)
    assert kept["plain"]["input"] is kept["plain"]["result"] is None
    assert kept["plain"]["input_truncated"] and kept["plain"]["result_bytes"] == len(b'{"secret":"x"}')
    assert kept["keyed"]["input"] == kept["keyed"]["result"] == secret, "who asks again is answered"
