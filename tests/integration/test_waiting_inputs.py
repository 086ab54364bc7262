"""Inputs of runs that wait: they have a bounded part of the daemon's memory, and one agent's leave some for others."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.core.pool import Policy
from orpheusd.errors import OrpheusError
from orpheusd.operations import INPUT_LIMIT_BYTES
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

AGENT = """
import os, time, workspace

def handler(input_data):
    while not os.path.exists(workspace.path("go")):
        time.sleep(0.005)
    return len(input_data["text"])
"""
SMALL = {"text": ""}
#: With what is around it in a body, as large as a body may be.
LARGE = {"text": "x" * (INPUT_LIMIT_BYTES - 1024)}
FIT = Policy().waiting_bytes // 2 // INPUT_LIMIT_BYTES


@pytest.fixture
def agents(daemon: Daemon, tmp_path: Path) -> tuple[str, str]:
    """Two with one worker each, which is busy until they are let go."""
    names = ("hoarder", "neighbour")
    for name in names:
        daemon.deploy(write_agent(tmp_path / name, AGENT, scaling={"min_workers": 1, "max_workers": 1}))
        daemon.call("run", agent=name, input=SMALL, detach=True)
        eventually(lambda name=name: queue(daemon, name)["processing"] == 1, what=f"the worker of {name} to be busy")
    return names


def queue(daemon: Daemon, name: str) -> Any:
    return daemon.call("agent.stats", agent=name)["queue"]


def test_large_inputs_that_wait_are_refused_before_they_fill_the_daemon(
    daemon: Daemon, agents: tuple[str, str]
) -> None:
    hoarder, neighbour = agents
    with daemon.connect() as control, daemon.connect() as other:
        waiting = {control.send("run", agent=hoarder, input=LARGE) for _ in range(FIT)}
        refused = control.send("run", agent=hoarder, input=LARGE)
        answer = control.receive()
        assert (answer["id"], answer["error"]["data"]["code"]) == (refused, "overloaded")
        assert "put large data into the workspace" in answer["error"]["message"]
        over_http = httpx.post(f"{daemon.http}/v1/agents/{hoarder}/run", json={"input": LARGE}, timeout=30)
        assert (over_http.status_code, over_http.json()["code"]) == (503, "overloaded")
        assert "Retry-After" in over_http.headers
        assert queue(daemon, hoarder)["depth"] == FIT

        other.send("run", agent=neighbour, input=LARGE)
        eventually(lambda: queue(daemon, neighbour)["depth"] == 1, what="the neighbour's run to wait")
        with pytest.raises(OrpheusError) as raised:
            daemon.call("run", agent=hoarder, input={"text": "x" * 10_000})
        assert raised.value.code == "overloaded"

        for name in agents:
            (Path(daemon.call("workspace.info", agent=name)["path"]) / "go").touch()
        answers = [control.receive() for _ in waiting]
        assert {answer["id"] for answer in answers} == waiting
        results = {answer["result"]["result"] for answer in [*answers, other.receive()]}
        assert results == {len(LARGE["text"])}
    assert daemon.call("run", agent=hoarder, input=LARGE)["result"] == len(LARGE["text"])
