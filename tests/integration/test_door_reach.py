"""What an agent reaches at the HTTP door of its own host: with the network all that is open, without it nothing, and
nothing where all of it needs the token.

docs/security.md says so where a reader decides whom to trust with whom; this is its proof. What an agent can do to
its sandbox is in test_escape_probes.py.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from orpheusd.operations import OPERATIONS, Access, Operation
from orpheusd.process import sandbox
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.integration.http_walk import SETTINGS, Guarded
from tests.integration.test_http_changes import make_token

OPEN = [one for one in OPERATIONS if one.http and one.access is not Access.ADMIN]
CHANGES = [one for one in OPERATIONS if one.http and one.access is Access.ADMIN]
SECRET = "what only the neighbour was told"
#: An agent that asks the door, as any program may, and tells what it was answered.
CURIOUS = """
import http.client

def handler(input_data):
    connection = http.client.HTTPConnection("127.0.0.1", input_data["port"], timeout=20)
    try:
        connection.request(input_data["method"], input_data["path"], input_data["body"],
                           {"Content-Type": "application/json"} if input_data["body"] else {})
        answer = connection.getresponse()
        return [answer.status, answer.read().decode()]
    except OSError as error:
        return [0, type(error).__name__]
    finally:
        connection.close()
"""
NEIGHBOUR = """
import time

def handler(input_data):
    if input_data == "wait":
        time.sleep(600)
    return ["the neighbour heard", input_data]
"""


class House(NamedTuple):
    """`run_id` is a run of the neighbour's that has ended, in its session `one`. `guarded` is what needs the token."""

    daemon: Daemon
    guarded: Guarded
    run_id: str

    def asks(self, agent: str, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """The status and text of what the door answered `agent`; 0 when it did not reach it."""
        question = {"method": method, "path": path, "body": None if body is None else json.dumps(body),
                    "port": int(str(self.daemon.http).rpartition(":")[2])}
        status, text = self.daemon.call("run", agent=agent, input=question)["result"]
        return status, text

    def tries(self, agent: str, operation: Operation) -> int:
        assert operation.http is not None
        method, path = operation.http
        filled = path.format(agent="neighbour", session_id="one", run_id=self.run_id)
        return self.asks(agent, method, filled, {"input": 1} if operation.name == "run" else None)[0]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda flags: " ".join(flags) or "no flag")
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    daemon = Daemon(*request.param)
    try:
        daemon.state_dir.mkdir(mode=0o700)
        make_token(daemon)
        daemon.start()
        agents = daemon.directory / "agents"
        daemon.deploy(write_agent(agents / "curious", CURIOUS))
        daemon.deploy(write_agent(agents / "closed", CURIOUS, network=False))
        daemon.deploy(write_agent(agents / "neighbour", NEIGHBOUR))
        told = daemon.call("run", agent="neighbour", input=SECRET, session_id="one")
        yield House(daemon, SETTINGS[request.param], told["request_id"])
    finally:
        daemon.close()


@pytest.mark.parametrize("operation", OPEN, ids=lambda one: one.name)
def test_an_agent_with_the_network_may_read_and_run_what_is_open(house: House, operation: Operation) -> None:
    # fault 29
    # A run that has ended is no longer there to be cancelled; one that goes on is, below.
    there = 404 if operation.name == "run.cancel" else 200
    assert house.tries("curious", operation) == (401 if operation.access in house.guarded else there)


@pytest.mark.parametrize("operation", CHANGES, ids=lambda one: one.name)
def test_an_agent_changes_nothing_without_the_token(house: House, operation: Operation) -> None:
    # fault 29
    before = house.daemon.call("agent.show", agent="neighbour")["version"]
    assert house.tries("curious", operation) == (401 if Access.ADMIN in house.guarded else 403)
    assert house.daemon.call("agent.show", agent="neighbour")["version"] == before


@pytest.mark.parametrize("operation", [*OPEN, *CHANGES], ids=lambda one: one.name)
def test_an_agent_without_the_network_reaches_nothing(house: House, operation: Operation) -> None:
    # fault 29
    assert house.tries("closed", operation) == 0


def test_an_agent_with_the_network_reads_what_others_were_told(house: House) -> None:
    if Access.READ in house.guarded:
        assert SECRET not in house.asks("curious", "GET", f"/v1/runs/{house.run_id}")[1]
        return
    status, text = house.asks("curious", "GET", f"/v1/runs/{house.run_id}")
    run = json.loads(text)
    assert (status, run["input"], run["result"]) == (200, SECRET, ["the neighbour heard", SECRET])


@pytest.mark.parametrize("how", ["cancels", "interrupts"])
def test_an_agent_with_the_network_stops_what_others_do(house: House, how: str) -> None:
    call = house.daemon.call
    run_id = call("run", agent="neighbour", input="wait", session_id=how, detach=True)["request_id"]
    eventually(lambda: call("run.show", run_id=run_id)["state"] == "started")
    if Access.RUN in house.guarded:
        assert house.asks("curious", "POST", f"/v1/runs/{run_id}/cancel")[0] == 401
        call("run.cancel", run_id=run_id)
        return
    if how == "cancels":
        status, text = house.asks("curious", "POST", f"/v1/runs/{run_id}/cancel")
        assert (status, json.loads(text)["cancelled"]) == (200, True)
    else:
        status, _ = house.asks("curious", "POST", "/v1/agents/neighbour/run",
                               {"input": 1, "session_id": how, "overlap": "interrupt"})
        assert status == 200
    assert call("run.show", run_id=run_id, wait=30)["state"] == "cancelled"
