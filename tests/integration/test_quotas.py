"""A workspace that holds more than it may: its agent takes no runs until it holds less."""

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
    logged = len(daemon.call("run.list", agent="hoarder")["runs"])
    with pytest.raises(OrpheusError, match=r"holds 1.907 MB, more than its `workspace.max_mb` of 1") as refused:
        daemon.call("run", agent="hoarder", input={"bytes": 1})
    assert refused.value.code == "conflict"
    answered = httpx.post(f"{daemon.http}/v1/agents/hoarder/run", json={"input": {"bytes": 1}})
    assert (answered.status_code, answered.json()["code"]) == (409, "conflict")
    assert len(daemon.call("run.list", agent="hoarder")["runs"]) == logged, "what is refused leaves no trace"
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
