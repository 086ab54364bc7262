"""A workspace that holds more than it may: its agent takes no runs until it holds less."""

import re
from pathlib import Path

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

HOARDER = """
import workspace
def handler(input_data):
    workspace.save("hoard.bin", b"x" * input_data["bytes"])
    return "kept"
"""


def test_runs_of_a_full_workspace_are_refused_until_there_is_space(daemon: Daemon, tmp_path: Path) -> None:
    # fault 53
    folder = write_agent(tmp_path / "hoarder", HOARDER, workspace={"max_mb": 1})
    other = write_agent(tmp_path / "modest", HOARDER)
    for each in (folder, other):
        daemon.deploy(each)
    assert daemon.call("run", agent="hoarder", input={"bytes": 2_000_000})["result"] == "kept", "it is measured after"
    eventually(lambda: daemon.call("workspace.info", agent="hoarder")["full"])
    eventually(lambda: len(daemon.call("run.list", agent="hoarder")["runs"]) == 1, what="the run to be in the log")
    with pytest.raises(OrpheusError, match=r"holds 1.907 MB, more than its `workspace.max_mb` of 1") as refused:
        daemon.call("run", agent="hoarder", input={"bytes": 1})
    assert refused.value.code == "conflict"
    answered = httpx.post(f"{daemon.http}/v1/agents/hoarder/run", json={"input": {"bytes": 1}})
    assert (answered.status_code, answered.json()["code"]) == (409, "conflict")
    assert len(daemon.call("run.list", agent="hoarder")["runs"]) == 1, "what is refused leaves no trace"
    assert any("hoarder" in problem for problem in daemon.call("status")["problems"])
    assert daemon.call("run", agent="modest", input={"bytes": 3_000_000})["result"] == "kept"
    assert daemon.call("workspace.info", agent="modest")["limit_bytes"] is None

    daemon.call("workspace.clean", agent="hoarder")
    assert daemon.call("run", agent="hoarder", input={"bytes": 2_000_000})["result"] == "kept", "at once"
    eventually(lambda: daemon.call("workspace.info", agent="hoarder")["full"])
    daemon.deploy(write_agent(folder, HOARDER, workspace={"max_mb": 10}))
    assert daemon.call("run", agent="hoarder", input={"bytes": 1})["result"] == "kept", "a higher limit counts at once"


def test_space_that_is_made_by_hand_is_noticed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "tidied", HOARDER, workspace={"max_mb": 1}))
    daemon.call("run", agent="tidied", input={"bytes": 2_000_000})
    eventually(lambda: daemon.call("workspace.info", agent="tidied")["full"])
    (Path(daemon.call("workspace.info", agent="tidied")["path"]) / "hoard.bin").unlink()
    eventually(lambda: not daemon.call("workspace.info", agent="tidied")["full"])
    assert daemon.call("run", agent="tidied", input={"bytes": 1})["result"] == "kept"


ENDLESS = """
import itertools, time, workspace
def handler(input_data):
    with workspace.path("heap").open("wb", buffering=0) as heap:
        for _ in itertools.count() if input_data["on"] else range(30):
            heap.write(bytes(100_000))
            time.sleep(0.001)
    time.sleep(input_data.get("then_s", 0))
    return "done"
"""


def test_a_run_that_writes_on_is_ended_and_told(daemon: Daemon, tmp_path: Path) -> None:
    # fault 53
    daemon.deploy(write_agent(tmp_path / "endless", ENDLESS, workspace={"max_mb": 2}, timeout=60))
    with pytest.raises(OrpheusError) as ended:
        daemon.call("run", agent="endless", input={"on": True})
    assert ended.value.code == "worker-crashed"
    [row] = eventually(lambda: daemon.call("run.list", agent="endless", state="crashed")["runs"])
    assert re.fullmatch(r"signal 9 \(SIGKILL\), ended by orpheusd: the workspace of endless holds [\de.+]+ MB, "
                        r"more than its `workspace.max_mb` of 2", row["exit_cause"]), row


def test_a_run_that_has_written_too_much_may_finish(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "endful", ENDLESS, workspace={"max_mb": 2}, timeout=60))
    assert daemon.call("run", agent="endful", input={"on": False, "then_s": 3})["result"] == "done"
    assert daemon.call("workspace.info", agent="endful")["full"], "it was found full meanwhile"
