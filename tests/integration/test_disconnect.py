"""Callers that leave before the answer: the run goes on, or is cancelled when the caller said so beforehand."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.doors.connection import IN_FLIGHT_LIMIT
from tests.daemon import ROOT, Daemon, write_agent
from tests.eventually import eventually

AGENT = """
import os, time, workspace

def handler(input_data):
    workspace.path(input_data["name"] + ".began").touch()
    while not os.path.exists(workspace.path(input_data["name"] + ".go")):
        time.sleep(0.005)
    return {"name": input_data["name"]}
"""
NAME = "left-alone"
CANCEL = {"X-Orpheus-Cancel-On-Disconnect": "true"}


@pytest.fixture(scope="module")
def workspace(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / NAME, AGENT))
    return Path(daemon.call("workspace.info", agent=NAME)["path"])


def begun(workspace: Path, name: str) -> None:
    eventually((workspace / f"{name}.began").exists, 10, f"{name} to begin")


def end_of(daemon: Daemon, name: str) -> str:
    """The state in which the run with this name ended."""
    def found() -> str | None:
        for row in daemon.call("run.list", agent=NAME, limit=1000)["runs"]:
            if row["ended_at"] is not None:
                shown = daemon.call("run.show", run_id=row["run_id"])
                if shown["input"]["name"] == name:
                    return str(shown["state"])
        return None

    return eventually(found, 20, f"the end of {name} to be in the run log") or ""


@contextlib.contextmanager
def request(daemon: Daemon, name: str, headers: dict[str, str]) -> Iterator[socket.socket]:
    """A client that has asked for a run over HTTP and has not read the answer."""
    assert daemon.http
    host, port = daemon.http.removeprefix("http://").split(":")
    body = json.dumps({"input": {"name": name}}).encode()
    head = [f"POST /v1/agents/{NAME}/run HTTP/1.1", "Host: localhost", "Content-Type: application/json",
            f"Content-Length: {len(body)}", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
    with socket.create_connection((host, int(port)), 20) as client:
        client.sendall("\r\n".join(head).encode() + body)
        yield client


def noticed_over_http(daemon: Daemon, workspace: Path, name: str) -> None:
    """Returns when the door has noticed whoever has left until now: it has acted on one that left later."""
    with request(daemon, f"{name}-canary", CANCEL):
        begun(workspace, f"{name}-canary")
    assert end_of(daemon, f"{name}-canary") == "cancelled"


def noticed_by_the_daemon(daemon: Daemon, workspace: Path, name: str) -> None:
    with daemon.connect() as control:
        control.send("run", agent=NAME, input={"name": f"{name}-canary"}, cancel_on_disconnect=True)
        begun(workspace, f"{name}-canary")
    assert end_of(daemon, f"{name}-canary") == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("headers", "state"), [({}, "completed"), (CANCEL, "cancelled"), (
    {"X-Orpheus-Cancel-On-Disconnect": "false"}, "completed")])
def test_an_http_client_that_leaves(
        daemon: Daemon, workspace: Path, stream: bool, headers: dict[str, str], state: str) -> None:  # fault 60
    name = f"http-{stream}-{len(headers)}-{state}"
    accept = {"Accept": "text/event-stream"} if stream else {}
    with request(daemon, name, {**headers, **accept}):
        begun(workspace, name)
    if state == "completed":
        noticed_over_http(daemon, workspace, name)
        (workspace / f"{name}.go").touch()
    assert end_of(daemon, name) == state


@pytest.mark.parametrize(("cancels", "state"), [(False, "completed"), (True, "cancelled")])
def test_a_control_client_that_leaves(daemon: Daemon, workspace: Path, cancels: bool, state: str) -> None:  # fault 59
    for stream in (False, True):
        name = f"ctl-{cancels}-{stream}"
        with daemon.connect() as control:
            control.send("run", agent=NAME, input={"name": name}, stream=stream, cancel_on_disconnect=cancels)
            begun(workspace, name)
        if not cancels:
            noticed_by_the_daemon(daemon, workspace, name)
            (workspace / f"{name}.go").touch()
        assert end_of(daemon, name) == state


@pytest.mark.parametrize(("flags", "state"), [([], "completed"), (["--cancel-on-disconnect"], "cancelled")])
def test_the_command_that_is_killed(daemon: Daemon, workspace: Path, flags: list[str], state: str) -> None:  # fault 59
    name = f"killed-{len(flags)}"
    command = subprocess.Popen(
        [sys.executable, "-m", "orpheusctl", "run", NAME, json.dumps({"name": name}), *flags], cwd=ROOT,
        env=daemon.ctl_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun(workspace, name)
    command.kill()
    command.wait(20)
    if not flags:
        noticed_by_the_daemon(daemon, workspace, name)
        (workspace / f"{name}.go").touch()
    assert end_of(daemon, name) == state


def test_one_that_leaves_takes_nobody_along(daemon: Daemon, workspace: Path) -> None:
    """Many clients of the HTTP door share its connection to the daemon."""
    with request(daemon, "stays", CANCEL) as stays:
        begun(workspace, "stays")
        for number in range(3):
            with request(daemon, f"leaves-{number}", CANCEL):
                begun(workspace, f"leaves-{number}")
        assert [end_of(daemon, f"leaves-{number}") for number in range(3)] == ["cancelled"] * 3
        (workspace / "stays.go").touch()
        answer = stays.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200") and b'"name":"stays"' in answer


def test_a_caller_that_stays_gets_its_answer(daemon: Daemon, workspace: Path) -> None:
    (workspace / "patient.go").touch()
    with httpx.Client(base_url=daemon.http or "", timeout=20) as http:
        path, json = f"/v1/agents/{NAME}/run", {"input": {"name": "patient"}}
        plain = http.post(path, json=json, headers=CANCEL)
        streamed = http.post(path, json=json, headers={**CANCEL, "Accept": "text/event-stream"})
        wrong = http.post(path, json=json, headers={"X-Orpheus-Cancel-On-Disconnect": "perhaps"})
        in_body = http.post(path, json={**json, "cancel_on_disconnect": True})
    assert (plain.status_code, plain.json()["result"]) == (200, {"name": "patient"})
    assert "event: result" in streamed.text
    assert (wrong.status_code, in_body.status_code) == (400, 400)
    assert daemon.call("run", agent=NAME, input={"name": "patient"}, cancel_on_disconnect=True)["result"]


def test_a_caller_that_asked_again_cancels_nothing(daemon: Daemon, workspace: Path) -> None:
    """It waits for a run that somebody else has asked for."""
    asked: dict[str, Any] = {"agent": NAME, "input": {"name": "shared"}, "idempotency_key": "shared"}
    with daemon.connect() as first:
        first.send("run", **asked)
        begun(workspace, "shared")
        with daemon.connect() as second:
            second.send("run", **asked, cancel_on_disconnect=True, stream=True)
            assert second.receive()["params"]["event"] == "accepted"
        noticed_by_the_daemon(daemon, workspace, "shared")
        (workspace / "shared.go").touch()
        assert first.receive()["result"]["result"] == {"name": "shared"}


def test_who_half_closes_has_left(daemon: Daemon, workspace: Path) -> None:
    with daemon.connect() as control:
        control.send("run", agent=NAME, input={"name": "half"}, cancel_on_disconnect=True)
        begun(workspace, "half")
        control.socket.shutdown(socket.SHUT_WR)
        assert end_of(daemon, "half") == "cancelled"


def test_who_leaves_before_the_run_has_begun(daemon: Daemon, workspace: Path) -> None:
    """A run that waits is withdrawn: no worker ever gets it."""
    with daemon.connect() as home:
        home.send("run", agent=NAME, input={"name": "home"}, session_id="s", overlap="queue")
        begun(workspace, "home")
        with daemon.connect() as control:
            control.send("run", agent=NAME, input={"name": "waits"}, session_id="s", overlap="queue",
                         cancel_on_disconnect=True)
            eventually(lambda: daemon.call("session.show", agent=NAME, session_id="s")["waiting"] == 1)
        assert end_of(daemon, "waits") == "cancelled"
        (workspace / "home.go").touch()
        assert home.receive()["result"]["result"] == {"name": "home"}
    assert not (workspace / "waits.began").exists()


def test_who_leaves_a_read_that_waits_leaves_nothing_behind(daemon: Daemon, workspace: Path) -> None:
    """More of them than the door has connections, and than the daemon takes requests of one connection at a time."""
    assert daemon.http
    host, port = daemon.http.removeprefix("http://").split(":")
    run_id = daemon.call("run", agent=NAME, input={"name": "awaited"}, detach=True)["request_id"]
    begun(workspace, "awaited")
    for _ in range(IN_FLIGHT_LIMIT + 1):
        with socket.create_connection((host, int(port)), 20) as client:
            client.sendall(f"GET /v1/runs/{run_id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = httpx.get(f"{daemon.http}/v1/runs/{run_id}", timeout=10)
    assert (answer.status_code, answer.json()["state"]) == (200, "started")
    (workspace / "awaited.go").touch()
    assert end_of(daemon, "awaited") == "completed"
