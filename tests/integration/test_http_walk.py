"""No route can be used by who may not: all of them x all methods x all refusals, and nothing is left of any."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route, Router

from orpheusd.doors.http import routes as routes_module
from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, OPERATIONS, Access, Operation
from tests.daemon import Daemon, bundle, write_agent
from tests.eventually import eventually
from tests.fault.holdings import state, stored
from tests.integration.door_peer import DoorProcess, first_answer
from tests.integration.http_walk import (
    METHODS,
    REFUSALS,
    RUN,
    SETTINGS,
    TOKEN,
    UNKNOWN,
    Cell,
    Guarded,
    Refusal,
    access_of,
    cells,
    request,
    served,
)

EACH = pytest.mark.parametrize("flags", SETTINGS, ids=lambda flags: " ".join(flags) or "no flag")
REFUSED = pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
#: For a daemon of paper.
NAMES = {"agent": "a", "session_id": "s", "run_id": "r-1"}
BODIES = {"/v1/agents/{agent}/run": RUN}
#: The handler leaves something in its workspace, or goes on.
AGENT = """
import time
import workspace

def handler(input_data):
    if input_data == "wait":
        time.sleep(600)
    path = workspace.path("effects")
    path.write_text(path.read_text() + "x" if path.exists() else "x")
"""


def answer(port: int, sent: bytes, is_head: bool) -> tuple[int, bytes]:
    """Status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        if is_head:
            received = b""
            while b"\r\n\r\n" not in received:
                piece = client.recv(4096)
                assert piece, received
                received += piece
        else:
            received = first_answer(client)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), received
    return int(head[9:12]), body


def walk(port: int, guarded: Guarded, refusal: Refusal, names: dict[str, str],
         bodies: dict[str, bytes]) -> Iterator[Cell]:
    """Each cell once it has answered as it must."""
    for cell in cells(guarded):
        expected = refusal.status(cell, guarded)
        if expected is None:
            continue
        sent = request(cell, place(cell, names), bodies.get(cell.path, b""), refusal)
        status, body = answer(port, sent, cell.method == "HEAD")
        assert status == expected, (cell, body)
        if cell.method != "HEAD":
            assert json.loads(body)["code"] in ("invalid-request", "permission-denied", "not-found"), (cell, body)
        yield cell


def place(cell: Cell, names: dict[str, str]) -> str:
    """The cell's path with names in it: what a route in particular takes, or what all do."""
    return re.sub(r"{(\w+)}", lambda found: names.get(f"{cell.path} {found[1]}", names.get(found[1], "")), cell.path)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, ...], DoorProcess]]:
    """One for each setting, each with a daemon of paper that writes down what it is asked."""
    folder = tmp_path_factory.mktemp("doors")
    with ExitStack() as stack:
        yield {flags: stack.enter_context(DoorProcess(folder / "".join(("log", *flags)), token=TOKEN, guard=guarded))
               for flags, guarded in SETTINGS.items()}


@EACH
@REFUSED
def test_the_daemon_is_not_asked(
        doors: dict[tuple[str, ...], DoorProcess], flags: tuple[str, ...], refusal: Refusal) -> None:
    # faults 68, 69
    door = doors[flags]
    door.peer.requests.clear()
    walked = []
    for cell in walk(door.port, SETTINGS[flags], refusal, NAMES, BODIES):
        assert door.peer.requests == [], cell
        walked.append(cell)
    assert len(walked) >= len(METHODS)
    # what the door asks comes in the order in which it asks it
    status, _ = answer(door.port, request(Cell("/v1/health", "GET", Access.READ), "/v1/health", b"", None), False)
    assert (status, [one["method"] for one in door.peer.requests]) == (200, ["health"])


def test_where_there_is_no_token_nobody_has_it(tmp_path: Path) -> None:
    guarded = frozenset({Access.READ, Access.RUN})
    with DoorProcess(tmp_path / "log", guard=guarded) as door:
        for cell in walk(door.port, guarded, Refusal({}, lambda cell, _: cell.missing or 403), NAMES, BODIES):
            assert door.peer.requests == [], cell
        assert door.log == ""


class House:
    """A real daemon with an agent that leaves effects, and everything that can be changed over HTTP."""

    def __init__(self, flags: tuple[str, ...], folder: Path) -> None:
        self.daemon = Daemon(*flags)
        self.daemon.state_dir.mkdir(mode=0o700)
        token = self.daemon.state_dir / "token"
        token.touch(0o600)
        token.write_text(TOKEN)
        self.daemon.start()
        self.port = int((self.daemon.http or "").rpartition(":")[2])
        self.bundle = bundle(write_agent(folder / "walked", AGENT), complete=True)
        for data in (self.bundle, self.bundle, bundle(write_agent(folder / "waits", AGENT), complete=True)):
            self.daemon.deploy_bundle(data)
        self.going = self.daemon.call("run", agent="waits", input="wait", detach=True)["request_id"]
        ended = self.daemon.call("run", agent="walked", input=1, session_id="s")["request_id"]
        self.names = {"agent": "walked", "session_id": "s", "run_id": ended,
                      "/v1/runs/{run_id}/cancel run_id": self.going}
        self.bodies = {"/v1/agents/{agent}/run": RUN, "/v1/deploy": self.bundle}
        eventually(lambda: {"started"} <= {row.state for row in stored(self.daemon, 0)}, what="the run that goes on")

    def look(self) -> dict[str, Any]:
        """All that a request could change."""
        audit = self.daemon.state_dir / "audit.log"
        call = self.daemon.call
        agents = [call("agent.show", agent=row["name"]) for row in call("agent.list")["agents"]]
        return {
            **state(self.daemon, 0), "ends": [(row.run_id, row.state) for row in stored(self.daemon, 0)],
            "workers": [[worker["id"] for worker in agent["workers"]] for agent in agents],
            "audit": len(audit.read_bytes()) if audit.exists() else 0, "pid": self.daemon.pid}

    def close(self) -> None:
        with suppress(OrpheusError):
            self.daemon.call("run.cancel", run_id=self.going)
        self.daemon.close()


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, ...], House]]:
    with ExitStack() as stack:
        made = {flags: House(flags, tmp_path_factory.mktemp("agents")) for flags in SETTINGS}
        for house in made.values():
            stack.callback(house.close)
        yield made


@EACH
@REFUSED
def test_nothing_is_left_of_it(houses: dict[tuple[str, ...], House], flags: tuple[str, ...], refusal: Refusal) -> None:
    # fault 68
    house = houses[flags]
    before = house.look()
    assert len(list(walk(house.port, SETTINGS[flags], refusal, house.names, house.bodies))) >= len(METHODS)
    assert house.look() == before


#: Every route that changes something, in an order in which each has something to change.
EFFECTS = ("run", "run.retry", "run.cancel", "session.end", "workspace.clean", "restart", "rollback", "deploy",
           "reload", "undeploy")


def test_with_nothing_wrong_the_same_requests_have_effects(tmp_path: Path) -> None:
    """Else the tests above would pass whatever the door did."""
    assert set(EFFECTS) == {one.name for one in OPERATIONS if one.http and one.access is not Access.READ}
    house = House(("--http-require-token", "--http-admin"), tmp_path)
    try:
        for name in EFFECTS:
            method, path = BY_NAME[name].http or ("", "")
            cell = Cell(path, method, BY_NAME[name].access)
            before = house.look()
            sent = request(cell, place(cell, house.names), house.bodies.get(path, b""), None)
            status, body = answer(house.port, sent, False)
            assert status == 200, (name, body)
            eventually(lambda before=before: house.look() != before, what=f"an effect of {name}")
    finally:
        house.close()


@EACH
def test_every_route_says_who_may_use_it(flags: tuple[str, ...]) -> None:
    rows = {(one.http[1], one.http[0]): one.access for one in OPERATIONS if one.http}
    found = {(path, method): access for path, methods in served(SETTINGS[flags]).items()
             for method, access in methods.items()}
    assert found == {**rows, ("/openapi.json", "GET"): Access.READ}
    assert UNKNOWN not in served(SETTINGS[flags])


@pytest.mark.parametrize("access", [None, "read", "admin"])
@EACH
def test_a_row_without_an_access_class_is_not_served(
        monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], access: Any) -> None:
    extra = Operation("extra", access, "an operation that says nothing of who may use it", (), ("GET", "/v1/extra"))
    monkeypatch.setattr(routes_module, "OPERATIONS", (*OPERATIONS, extra))
    with pytest.raises(ValueError, match="extra is served over HTTP and does not say who may use it"):
        served(SETTINGS[flags])


def test_a_route_beside_the_table_does_not_pass() -> None:
    async def extra(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("nobody asks")

    for route in (Route("/v1/extra", routes_module.Path({})), Route("/v1/extra", extra), Router()):
        with pytest.raises(AssertionError, match=r"says no access|extra"):
            access_of([route])
