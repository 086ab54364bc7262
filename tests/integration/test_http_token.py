"""Where all of it needs the token (`http_require_token`): whoever has it is served, and nobody else."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.daemon import Daemon, write_agent
from tests.integration.test_http_changes import make_token

ECHO = "def handler(input_data):\n    return input_data\n"
READS = ("/v1/health", "/metrics", "/openapi.json", "/v1/agents", "/v1/execlog")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon("--http-require-token")
    one.state_dir.mkdir(mode=0o700)
    try:
        make_token(one)
        one.start()
        one.deploy(write_agent(tmp_path_factory.mktemp("agents") / "kept", ECHO))
        yield one
    finally:
        one.close()


def authorised(house: Daemon) -> dict[str, str]:
    return {"Authorization": f"Bearer {(house.state_dir / 'token').read_text().strip()}"}


def run(house: Daemon, **headers: str) -> httpx.Response:
    return httpx.post(f"{house.http}/v1/agents/kept/run", json={"input": 1}, headers=headers, timeout=20)


@pytest.mark.parametrize("path", READS)
def test_reads_are_for_who_has_the_token(house: Daemon, path: str) -> None:
    refused = httpx.get(f"{house.http}{path}")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="orpheus"')
    assert "Authorization: Bearer TOKEN" in refused.json()["error"]
    assert httpx.get(f"{house.http}{path}", headers=authorised(house)).status_code == 200


def test_runs_are_for_who_has_the_token(house: Daemon) -> None:
    def executed() -> int:
        return len(house.call("run.list", agent="kept")["runs"])

    before = executed()
    for headers in ({}, {"Accept": "text/event-stream"}, {"Prefer": "respond-async"}):
        assert run(house, **headers).status_code == 401
    assert executed() == before
    assert run(house, **authorised(house)).json()["result"] == 1
    assert "event: result" in run(house, Accept="text/event-stream", **authorised(house)).text
    accepted = run(house, Prefer="respond-async", **authorised(house))
    assert accepted.status_code == 202
    ended = httpx.get(f"{house.http}{accepted.headers['location']}?wait=20", headers=authorised(house), timeout=30)
    assert ended.json()["state"] == "completed"


def test_curl_finds_the_token_in_a_file(house: Daemon, tmp_path: Path) -> None:
    """As in docs/http.md."""
    told = tmp_path / "token.curl"
    told.write_text(f'header = "Authorization: {authorised(house)["Authorization"]}"\n')
    done = subprocess.run(["curl", "-sS", "-K", told, f"{house.http}/v1/health"], capture_output=True, timeout=20,
                          check=True)
    assert b'"status":"ok"' in done.stdout


def test_changes_stay_off_with_the_token_too(house: Daemon) -> None:
    answer = httpx.post(f"{house.http}/v1/agents/kept/restart", headers=authorised(house))
    assert answer.status_code == 403 and "orpheusctl restart NAME" in answer.json()["error"]


def test_the_command_line_needs_no_token(house: Daemon) -> None:
    assert house.ctl("run", "kept", "1").stdout == "1\n"
    assert "with the token alone" in house.ctl("doctor").stdout


@pytest.mark.parametrize("spoil", ["none", "readable"])
def test_without_a_token_file_that_is_private_all_is_refused(new_daemon: Callable[..., Daemon], spoil: str) -> None:
    directory = Daemon().directory
    token = directory / "state/token"
    token.parent.mkdir(mode=0o700)
    if spoil == "readable":
        token.touch(0o600)
        token.write_text("t" * 43)
        token.chmod(0o644)
    house = new_daemon("--http-require-token", directory=directory)
    for path in READS:
        answer = httpx.get(f"{house.http}{path}", headers={"Authorization": f"Bearer {'t' * 43}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied"), path
        assert "orpheusd --make-token" in answer.json()["error"]
    assert "what needs the token is refused over HTTP" in house.log
    assert "all requests are refused" in house.ctl("doctor").stdout


def test_a_reload_does_not_open_it(house: Daemon) -> None:
    assert house.ctl("reload").returncode == 0
    assert httpx.get(f"{house.http}/v1/health").status_code == 401
    assert httpx.get(f"{house.http}/v1/health", headers=authorised(house)).status_code == 200
