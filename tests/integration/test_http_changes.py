"""Changes over HTTP: off by default, and where they are switched on for whoever has the token and nobody else."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orpheusd.doors.http.complaints import WINDOW_LIMIT, WINDOW_S
from orpheusd.doors.http.head import GZIP
from orpheusd.operations import OPERATIONS, Access, Operation
from tests.daemon import ROOT, Daemon, bundle, environment, given, write_agent
from tests.eventually import eventually
from tests.integration.door_peer import DoorProcess

ECHO = "import os\ndef handler(input_data):\n    return os.environ.get('KEY', '')\n"
SECRET = "planted-51c2e"
CHANGES = [one for one in OPERATIONS if one.http and one.access is Access.ADMIN]


def make_token(house: Daemon) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "orpheusd", "--make-token", "--state-dir", str(house.state_dir)], cwd=ROOT,
        env=environment(), capture_output=True, text=True, timeout=20, check=True)
    token = (house.state_dir / "token").read_text().strip()
    assert len(token) >= 43 and token not in done.stdout + done.stderr
    return token


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    one = Daemon("--http-admin")
    one.state_dir.mkdir(mode=0o700)
    try:
        make_token(one)
        yield one.start()
    finally:
        one.close()


@pytest.fixture
def token(house: Daemon) -> str:
    return (house.state_dir / "token").read_text().strip()


@pytest.fixture
def http(house: Daemon, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.http or "", timeout=60, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def deploy(http: httpx.Client, data: Any, env: str = "{}") -> httpx.Response:
    return http.post("/v1/deploy", content=data, headers={"Content-Type": GZIP.decode(), "X-Orpheus-Env": env})


def path_of(operation: Operation) -> str:
    assert operation.http
    return operation.http[1].format(agent="absent", session_id="s", run_id="r-1")


def test_an_agent_is_deployed_changed_and_undeployed(house: Daemon, http: httpx.Client, tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "remote", ECHO, env=["KEY"])
    answer = deploy(http, bundle(folder), json.dumps({**given(folder), "KEY": SECRET}))
    assert (answer.status_code, answer.json()["name"], answer.json()["version"]) == (200, "remote", 1), answer.text
    assert house.call("run", agent="remote", input={}, session_id="s")["result"] == SECRET
    assert http.delete("/v1/agents/remote/sessions/s").json() == {"id": "s", "ended": True}
    assert http.post("/v1/agents/remote/restart").json() == {"name": "remote", "version": 1}
    assert deploy(http, bundle(folder), json.dumps({**given(folder), "KEY": "other"})).json()["version"] == 2
    assert http.post("/v1/agents/remote/rollback?version=1").json()["version"] == 1
    assert http.delete("/v1/agents/remote/workspace").json()["left"] == 0
    assert http.delete("/v1/agents/remote?purge=true").json() == {"name": "remote", "purged": True}
    told = [json.loads(line) for line in (house.state_dir / "audit.log").read_bytes().splitlines()]
    assert {(row["source"], row["outcome"]) for row in told if row["operation"] == "deploy"} == {("http", "done")}


def test_a_body_that_comes_in_pieces_is_passed_on(house: Daemon, http: httpx.Client, tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "large", "def handler(input_data):\n    return 1\n")
    (folder / "noise").write_bytes(os.urandom(3_000_000))
    data = bundle(folder)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), 70_001):
            yield data[start:start + 70_001]

    answer = deploy(http, pieces(), json.dumps(given(folder)))
    assert answer.status_code == 200, answer.text
    assert house.call("run", agent="large", input={})["result"] == 1


@pytest.mark.parametrize("operation", CHANGES, ids=lambda operation: operation.name)
@pytest.mark.parametrize(("sent", "status"), [
    (None, 401), ("x", 401), ("Basic eDp5", 401), ("Bearer", 401),
    ("Bearer x", 403), ("Bearer " + "x" * 43, 403), ("Bearer " + "x" * 4000, 403),
], ids=["none", "odd", "basic", "bare", "short", "wrong", "long"])  # fmt: skip
def test_without_the_token_nothing_is_changed(
        house: Daemon, operation: Operation, sent: str | None, status: int) -> None:
    assert operation.http
    audited = house.state_dir / "audit.log"
    before = audited.read_bytes() if audited.exists() else b""
    answer = httpx.request(operation.http[0], f"{house.http}{path_of(operation)}",
                           headers={} if sent is None else {"Authorization": sent})
    assert (answer.status_code, answer.json()["code"]) == (status, "permission-denied")
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert (audited.read_bytes() if audited.exists() else b"") == before, "the daemon was not even asked"


def test_a_flood_of_wrong_tokens_is_said_briefly(tmp_path: Path) -> None:
    with (DoorProcess(tmp_path / "log", token="t" * 43, guard=[Access.ADMIN]) as door,
          httpx.Client(base_url=door.url, timeout=20) as client):
        started = time.monotonic()
        assert client.post("/v1/reload").status_code == 401
        for number in range(300):
            wrong = {"Authorization": f"Bearer wrong-{number}"}
            assert client.post("/v1/reload", headers=wrong).status_code == 403
        windows = 1 + (time.monotonic() - started) // WINDOW_S
        assert door.peer.requests == []
        assert "WARNING: a request over HTTP was refused: it had no token\n" in door.log
        assert "WARNING: a request over HTTP was refused: its token is wrong\n" in door.log
        assert len(door.log.splitlines()) <= windows * (WINDOW_LIMIT + 1) and "wrong-" not in door.log


def test_a_token_and_a_little_more_is_another_token(house: Daemon, token: str) -> None:
    for near in (token[:-1], token + "x", token + " x", token.swapcase()):
        answer = httpx.post(f"{house.http}/v1/agents/absent/restart", headers={"Authorization": f"Bearer {near}"})
        assert answer.status_code == 403, near


@pytest.mark.parametrize("header", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_with_the_token_is_refused_all_the_same(http: httpx.Client, header: dict[str, str]) -> None:
    # fault 68
    assert http.post("/v1/agents/absent/restart", headers=header).status_code == 403


def test_what_is_asked_wrongly_is_refused_as_at_the_other_door(http: httpx.Client) -> None:
    assert http.post("/v1/agents/absent/restart").json()["code"] == "not-found"
    assert http.post("/v1/agents/BAD/restart").status_code == 400
    assert http.delete("/v1/agents/absent?purge=perhaps").status_code == 400
    assert deploy(http, b"").status_code == 400
    assert deploy(http, b"no archive").json()["code"] == "invalid-request"
    assert deploy(http, b"x", "no json").status_code == 400
    assert http.post("/v1/deploy", json={}).status_code == 415
    assert http.post("/v1/agents/a/run", content=b"x", headers={"Content-Type": GZIP.decode()}).status_code == 415


def test_a_bundle_that_is_too_long_or_does_not_arrive_is_forgotten(
        house: Daemon, http: httpx.Client, token: str) -> None:
    # fault 62
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    def uploads() -> list[Path]:
        return list(house.state_dir.glob("tmp/upload-*"))

    assert uploads() == []
    try:
        answer = http.post("/v1/deploy", content=endless(), headers={"Content-Type": GZIP.decode()})
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the door hung up while we were still sending
    eventually(lambda: not uploads())
    host, _, port = (house.http or "").removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /v1/deploy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
                       "Content-Type: application/gzip\r\nContent-Length: 9000000\r\n\r\n".encode())
        client.sendall(b"x" * 3_000_000)
        eventually(uploads, what="the upload to begin")
    eventually(lambda: not uploads(), what="the upload to be forgotten")


def test_the_token_is_told_nowhere(house: Daemon, http: httpx.Client, token: str) -> None:
    http.post("/v1/agents/absent/restart")
    http.get("/openapi.json")
    for process in [psutil.Process(house.pid), *house.family()]:
        for place in ("cmdline", "environ"):
            assert token.encode() not in Path(f"/proc/{process.pid}/{place}").read_bytes()
    for path in house.directory.rglob("*"):
        if path.is_file() and path != house.state_dir / "token":
            assert token.encode() not in path.read_bytes(), path
    for answer in (http.get("/openapi.json"), http.get("/v1/status")):
        assert token not in answer.text


def test_the_document_tells_of_changes_where_there_are_some(house: Daemon, daemon: Daemon) -> None:
    def restart(one: Daemon) -> Any:
        return httpx.get(f"{one.http}/openapi.json").json()["paths"]["/v1/agents/{agent}/restart"]["post"]

    assert restart(house)["security"] == [{"token": []}]
    assert {"200", "401", "403"} <= restart(house)["responses"].keys()
    assert "security" not in restart(daemon) and "200" not in restart(daemon)["responses"]


@pytest.mark.parametrize("spoil", ["none", "readable", "short", "link"])
def test_without_a_token_file_that_is_private_changes_are_refused(
        new_daemon: Callable[..., Daemon], spoil: str) -> None:
    directory = Daemon().directory
    state = directory / "state"
    state.mkdir(mode=0o700)
    token = "t" * 43
    path = state / "token"
    if spoil != "none":
        path.write_text("t" if spoil == "short" else token)
        path.chmod(0o644 if spoil == "readable" else 0o600)
    if spoil == "link":
        path.rename(state / "elsewhere")
        path.symlink_to(state / "elsewhere")
    house = new_daemon("--http-admin", directory=directory)
    answer = httpx.post(f"{house.http}/v1/agents/absent/restart", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied")
    assert "what needs the token is refused over HTTP" in house.log and "--make-token" in house.log


def test_a_new_token_takes_the_place_of_the_old_one(new_daemon: Callable[..., Daemon]) -> None:
    house = new_daemon("--http-admin")
    tokens = [make_token(house), make_token(house)]
    assert (house.state_dir / "token").stat().st_mode & 0o777 == 0o600
    house.restart()
    statuses = [httpx.post(f"{house.http}/v1/agents/absent/restart",
                           headers={"Authorization": f"Bearer {each}"}).status_code for each in tokens]
    assert statuses == [403, 404]
    assert house.ctl("reload").returncode == 0
    answer = httpx.post(f"{house.http}/v1/agents/absent/restart", headers={"Authorization": f"Bearer {tokens[1]}"})
    assert answer.status_code == 404, "a reload changes nothing of it"
