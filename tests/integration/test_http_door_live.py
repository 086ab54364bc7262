"""The HTTP door of a real daemon: sessions work through it, answers are as /openapi.json promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

AGENT = """
import gc, os, workspace
turns = {}

def handler(input_data):
    if input_data.get("fail"):
        raise ValueError("as asked")
    session = input_data.get("session_id", "default")
    turns[session] = turns.get(session, 0) + 1
    print("turn", turns[session])
    if "forge" in input_data:
        said = '{"type":"output","run_id":"%s","seq":%d}\\n%s\\n' % (workspace.run.id, *input_data["forge"])
        os.write(next(one for one in gc.get_objects() if type(one).__name__ == "Channel").fileno(), said.encode())
    workspace.emit({"large": 2 ** 70, "whole": 1.0})
    return {"turn": turns[session], "large": 2 ** 70}
"""
NAME = "http-live"
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,),
    "number": (int, float), "null": (type(None),)}


@pytest.fixture(scope="module")
def deployed(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / NAME, AGENT))
    return daemon


@pytest.fixture
def http(deployed: Daemon) -> Iterator[httpx.Client]:
    assert deployed.http
    with httpx.Client(base_url=deployed.http, timeout=30) as client:
        yield client


def violations(value: Any, schema: dict[str, Any], place: str = "$") -> list[str]:
    """Where `value` differs from what the few words of JSON Schema say that the door's document uses."""
    found: list[str] = []
    if "anyOf" in schema and all(violations(value, one) for one in schema["anyOf"]):
        found.append(f"{place}: none of {schema['anyOf']}")
    for one in schema.get("allOf", []):
        found += violations(value, one, place)
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: {value!r} is not one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{place}: {value!r} is not {schema['const']!r}")
    if "type" in schema and (not isinstance(value, TYPES[schema["type"]])
                             or (isinstance(value, bool) and schema["type"] != "boolean")):
        return [*found, f"{place}: {value!r} is no {schema['type']}"]
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        found.append(f"{place}: {value} is too small")
    if isinstance(value, dict):
        found += [f"{place}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, one in schema.get("properties", {}).items():
            if name in value:
                found += violations(value[name], one, f"{place}.{name}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += violations(item, schema.get("items", {}), f"{place}[{number}]")
    return found


def test_a_session_keeps_its_memory_over_http(http: httpx.Client) -> None:
    seen = [http.post(f"/v1/agents/{NAME}/run", json={"input": {}}, headers={"X-Session-ID": "kept"})
            for _ in range(3)]
    assert [one.json()["result"]["turn"] for one in seen] == [1, 2, 3]
    assert [one.headers["X-Orpheus-Context"] for one in seen] == ["new", "warm", "warm"]
    assert len({one.headers["X-Orpheus-Worker"] for one in seen}) == 1
    assert "1180591620717411303424" in seen[0].text, "no digit of a large number is lost"


def test_a_stream_says_what_happens_and_then_the_result(http: httpx.Client) -> None:
    answer = http.post(f"/v1/agents/{NAME}/run", json={"input": {}}, headers={"Accept": "text/event-stream"})
    assert answer.status_code == 200
    assert 'event: log\ndata: {"stream":"stdout","text":"turn ' in answer.text
    assert 'event: output\ndata: {"large":1180591620717411303424,"whole":1.0}\n' in answer.text
    assert answer.text.rstrip().rpartition("\n\n")[2].split("\n")[1] == "event: result"


@pytest.mark.parametrize(("seq", "output", "told"), [
    pytest.param(-1, '"forged"', False, id="a number below all"),
    pytest.param(10 ** 18, '"forged"', False, id="a number that nobody counts to"),
    pytest.param(7, "1e999", True, id="JSON that not everybody can read"),
])
def test_output_that_no_worker_says_ends_no_door(http: httpx.Client, seq: int, output: str, told: bool) -> None:
    asked = {"input": {"forge": [seq, output]}}
    answer = http.post(f"/v1/agents/{NAME}/run", json=asked, headers={"Accept": "text/event-stream"})
    assert "event: result" in answer.text
    assert (f"event: output\ndata: {output}\n" in answer.text, output in answer.text) == (told, told)


def test_every_answer_has_the_shape_that_is_promised(http: httpx.Client) -> None:
    run_id = http.post(f"/v1/agents/{NAME}/run", json={"input": {}}, headers={"X-Session-ID": "shape"}).json()[
        "request_id"]
    eventually(lambda: http.get(f"/v1/runs/{run_id}").status_code == 200, what="the run in the run log")
    document = http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        if "get" not in methods:
            continue
        answer = http.get(path.format(agent=NAME, session_id="shape", run_id=run_id))
        assert answer.status_code == 200, (path, answer.text)
        media_type = answer.headers["Content-Type"].partition(";")[0]
        content = methods["get"]["responses"]["200"]["content"][media_type]
        value = answer.json() if media_type == "application/json" else answer.text
        assert violations(value, content["schema"]) == [], path
    run = document["paths"]["/v1/agents/{agent}/run"]["post"]["responses"]
    for session in ({}, {"session_id": "shape"}):
        answer = http.post(f"/v1/agents/{NAME}/run", json={"input": {}, **session})
        assert violations(answer.json(), run["200"]["content"]["application/json"]["schema"]) == []


@pytest.mark.parametrize(("request_body", "status", "code"), [
    ({"input": {"fail": True}}, 500, "handler-failed"),
    ({"input": {}, "session_id": "../etc"}, 400, "invalid-request"),
    ({"input": {}, "timeout_s": -1}, 400, "invalid-request"),
    ({}, 400, "invalid-request"),
])
def test_errors_have_the_shape_that_is_promised(
        http: httpx.Client, request_body: dict[str, Any], status: int, code: str) -> None:
    document = http.get("/openapi.json").json()
    answer = http.post(f"/v1/agents/{NAME}/run", json=request_body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert str(status) in document["paths"]["/v1/agents/{agent}/run"]["post"]["responses"]
    assert violations(answer.json(), document["components"]["schemas"]["Error"]) == []


def test_an_unknown_agent_is_not_found(http: httpx.Client) -> None:
    for answer in (http.post("/v1/agents/nobody/run", json={"input": 1}), http.get("/v1/agents/nobody"),
                   http.get(f"/v1/agents/{NAME}/sessions/nobody")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.fixture(scope="module")
def renamed(deployed: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An agent whose callers send their own header."""
    folder = tmp_path_factory.mktemp("agents") / "http-renamed"
    deployed.deploy(write_agent(folder, AGENT, session={"header": "X-Conversation-Id"}))
    return folder.name


def ask(http: httpx.Client, agent: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    return http.post(f"/v1/agents/{agent}/run", json={"input": {}, **body}, headers=headers)


def test_every_source_of_the_session_id_reaches_one_session(http: httpx.Client, renamed: str) -> None:
    answers = [
        ask(http, renamed, {"X-Session-ID": "same"}), ask(http, renamed, {"x-conversation-id": "same"}),
        ask(http, renamed, {"Mcp-Session-Id": "same"}), ask(http, renamed, {}, session_id="same"),
        ask(http, renamed, {"X-Session-ID": "same", "X-Conversation-Id": "same", "Mcp-Session-Id": "same"},
            session_id="same")]
    assert [one.json()["result"]["turn"] for one in answers] == [1, 2, 3, 4, 5]
    assert {one.json()["session"]["id"] for one in answers} == {"same"}
    assert ask(http, renamed, {"X-Request-Id": "other"}).json()["session"] is None


@pytest.mark.parametrize(("headers", "body"), [
    ({"X-Session-ID": "a", "X-Conversation-Id": "b"}, {}),
    ({"X-Conversation-Id": "a", "Mcp-Session-Id": "b"}, {}),
    ({"X-Session-ID": "a", "Mcp-Session-Id": "b"}, {}),
    ({"X-Conversation-Id": "a"}, {"session_id": "b"}),
    ({"Mcp-Session-Id": "a"}, {"session_id": "b"}),
    ({"X-Conversation-Id": "a"}, {"input": {"session_id": "b"}}),
])
def test_sources_that_differ_are_refused(
        http: httpx.Client, renamed: str, headers: dict[str, str], body: dict[str, Any]) -> None:
    answer = ask(http, renamed, headers, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "differ" in answer.json()["error"]


@pytest.mark.parametrize("header", ["X-Conversation-Id", "Mcp-Session-Id"])
@pytest.mark.parametrize("id", ["", "../etc", "a" * 129, "a b"])
def test_a_bad_id_in_a_header_is_refused_and_not_ignored(
        http: httpx.Client, renamed: str, header: str, id: str) -> None:
    # fault 66
    answer = ask(http, renamed, {header: id})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "session id" in answer.json()["error"]


def test_the_header_is_the_agents_own_and_a_new_version_may_name_another(
        http: httpx.Client, deployed: Daemon, tmp_path: Path) -> None:
    assert ask(http, NAME, {"X-Conversation-Id": "x"}).json()["session"] is None
    for header, other in (("X-First", "X-Second"), ("X-Second", "X-First")):
        deployed.deploy(write_agent(tmp_path / "http-moves", AGENT, session={"header": header}))
        assert ask(http, "http-moves", {header: "x"}).json()["session"]["id"] == "x"
        assert ask(http, "http-moves", {other: "x"}).json()["session"] is None


def test_nothing_is_changed_over_http(http: httpx.Client) -> None:
    before = http.get("/v1/agents").json()
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        for method, entry in methods.items():
            if "200" not in entry["responses"]:
                answer = http.request(method, path.format(agent=NAME, session_id="kept", run_id="r-1"))
                assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied"), (method, path)
    assert http.get("/v1/agents").json() == before
