"""The HTTP door as its callers see it: routes, parameters, answers and errors, against a scripted daemon."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.errors import CODES, OrpheusError
from orpheusd.operations import OPERATIONS, Access, Operation
from tests.integration.door_peer import (
    DoorProcess,
    Peer,
    echo,
    first_answer,
    never,
    post,
    run_result,
    until_closed,
    until_quiet,
)

SERVED = [one for one in OPERATIONS if one.http and one.access is not Access.ADMIN]
FORBIDDEN = [one for one in OPERATIONS if one.http and one.access is Access.ADMIN]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
RUN = "/v1/agents/my-agent/run"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorProcess]:
    with DoorProcess(tmp_path_factory.mktemp("door") / "log") as one:
        yield one


@pytest.fixture
def door(shared: DoorProcess) -> Iterator[DoorProcess]:
    """The shared door, with no requests and the usual scripts."""
    scripts = dict(shared.peer.scripts)
    shared.peer.requests.clear()
    yield shared
    shared.peer.scripts = scripts


@pytest.fixture
def http(door: DoorProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url, timeout=10) as client:
        yield client


def asked(door: DoorProcess) -> list[dict[str, Any]]:
    return [one["params"] for one in door.peer.requests]


def path_of(operation: Operation) -> str:
    assert operation.http
    return operation.http[1].format(agent="my-agent", session_id="user-1", run_id="r-1")


def test_a_run_is_answered_with_the_daemons_own_answer(door: DoorProcess, http: httpx.Client) -> None:
    answer = http.post(RUN, json={"input": {"query": "step 1"}}, headers={"X-Session-ID": "user-123"})
    assert answer.status_code == 200
    assert answer.json() == run_result(
        result={"query": "step 1"}, session={"id": "user-123", "context": "warm", "turn": 2})
    assert answer.headers["X-Orpheus-Context"] == "warm"
    assert answer.headers["X-Orpheus-Worker"] == "w-1-1"
    assert asked(door) == [{"input": {"query": "step 1"}, "session_id": "user-123", "agent": "my-agent"}]


def test_a_run_without_a_session_has_no_context(http: httpx.Client) -> None:
    answer = http.post(RUN, json={"input": None})
    assert answer.json()["session"] is None
    assert "X-Orpheus-Context" not in answer.headers


def test_a_result_passes_byte_for_byte(door: DoorProcess, http: httpx.Client) -> None:
    """Numbers beyond 64 bits, digits that another encoder would write otherwise, what no decoder here would take."""
    result = '{"request_id":"r-1","worker_id":"w","session":null,"result":[1180591620717411303424,1.0,1e5,"\\u00e9",'
    result += "[" * 2000 + "]" * 2000 + "]}"

    def script(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        peer.send_line(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (id, result.encode()))

    door.peer.scripts["run"] = script
    assert http.post(RUN, json={"input": 1}).text == result


def test_an_answer_in_another_form_is_understood(door: DoorProcess, http: httpx.Client) -> None:
    def script(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        peer.send_line(json.dumps({"result": run_result(result=7), "id": id, "jsonrpc": "2.0"}).encode())

    door.peer.scripts["run"] = script
    assert http.post(RUN, json={"input": 1}).json()["result"] == 7


def test_large_inputs_and_results_pass(http: httpx.Client) -> None:
    text = "x" * 8_000_000
    assert http.post(RUN, json={"input": text}).json()["result"] == text


def test_headers_and_body_fields_become_parameters(door: DoorProcess, http: httpx.Client) -> None:
    http.post(RUN, json={"input": 1, "timeout_s": 2.5, "session_id": "u"}, headers={
        "X-Session-ID": "u", "X-Session-Affinity": "strict", "X-Session-Overlap": "queue",
        "X-Session-Require": "warm"})
    assert asked(door) == [{"agent": "my-agent", "input": 1, "timeout_s": 2.5, "session_id": "u",
                            "affinity": "strict", "overlap": "queue", "require": "warm"}]


def test_headers_that_may_bear_the_session_id_are_passed_on(door: DoorProcess, http: httpx.Client) -> None:
    http.post(RUN, json={"input": 1}, headers={
        "X-Conversation-Id": "c", "Mcp-Session-Id": "m", "Thread-ID": "t" * 200, "X-Session-Overlap": "queue",
        "Authorization": "no", "Cookie": "id=no"})
    assert asked(door) == [{
        "agent": "my-agent", "input": 1, "overlap": "queue",
        "session_headers": {"x-conversation-id": "c", "mcp-session-id": "m", "thread-id": "t" * 129}}]


@pytest.mark.parametrize(("body", "headers", "says"), [
    ({"input": 1, "session_id": "a"}, {"X-Session-ID": "b"}, "differ"),
    ({"input": 1, "session_id": None}, {"X-Session-ID": "b"}, "differ"),
    ({"input": 1, "overlap": "queue"}, {"X-Session-Overlap": "reject"}, "differ"),
    ({"input": 1, "inptu": 2}, {}, "no others"),
    ({"input": 1, "stream": True}, {}, "no others"),
    ({"input": 1, "session_headers": {"mcp-session-id": "a"}}, {}, "no others"),
    ({"input": 1, "agent": "other"}, {}, "no others"),
    ([1], {}, "must be an object"),
    ("text", {}, "must be an object"),
])
def test_wrong_run_requests_are_refused_here(
        door: DoorProcess, http: httpx.Client, body: Any, headers: dict[str, str], says: str) -> None:
    answer = http.post(RUN, json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert says in answer.json()["error"]
    assert asked(door) == []


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b'{"input": NaN}', b'{"input": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(door: DoorProcess, http: httpx.Client, body: bytes) -> None:
    answer = http.post(RUN, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert asked(door) == []


def test_two_session_headers_that_differ_are_refused(door: DoorProcess) -> None:
    # fault 70
    two = door.exchange(post(b'{"input":1}', b"X-Session-ID: a", b"X-Session-ID: b"))
    assert two.startswith(b"HTTP/1.1 400 ") and b"x-session-id" in two
    assert asked(door) == []
    same = door.exchange(post(b'{"input":1}', b"X-Session-ID: a", b"x-session-id: a"))
    assert same.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_its_status_and_body(door: DoorProcess, http: httpx.Client, code: str) -> None:
    door.peer.on("run", OrpheusError(code, "it went wrong", {"request_id": "r-9", "error_type": "ValueError"}))
    answer = http.post(RUN, json={"input": 1})
    outcome = CODES[code]
    assert answer.status_code == outcome.http_status
    expected: dict[str, Any] = {
        "request_id": "r-9", "error_type": "ValueError", "error": "it went wrong", "code": code}
    if outcome.retry_after_s is not None:
        expected["retry_after_s"] = outcome.retry_after_s
        assert answer.headers["Retry-After"] == str(outcome.retry_after_s)
    else:
        assert "Retry-After" not in answer.headers
    assert answer.json() == expected
    assert "connection" not in answer.headers, "an error that is no fault of HTTP keeps the connection"


@pytest.mark.parametrize("operation", SERVED, ids=lambda operation: operation.name)
def test_every_served_route_reaches_its_operation(
        door: DoorProcess, http: httpx.Client, operation: Operation) -> None:
    door.peer.on(operation.name, run_result(text="metric 1\n"))
    assert operation.http
    body = {"json": {"input": 1}} if operation.name == "run" else {}
    answer = http.request(operation.http[0], path_of(operation), **body)  # type: ignore[arg-type]
    assert answer.status_code == 200
    assert [one["method"] for one in door.peer.requests] == [operation.name]
    wanted = {"agent": "my-agent", "session_id": "user-1", "run_id": "r-1", "input": 1}
    assert asked(door)[0].items() <= wanted.items()


@pytest.mark.parametrize("operation", FORBIDDEN, ids=lambda operation: operation.name)
def test_every_change_is_refused_with_its_command(
        door: DoorProcess, http: httpx.Client, operation: Operation) -> None:
    assert operation.http
    answer = http.request(operation.http[0], path_of(operation))
    assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied")
    assert f"`orpheusctl {operation.cli}" in answer.json()["error"]
    assert asked(door) == []


def test_other_methods_are_refused_with_those_allowed(door: DoorProcess, http: httpx.Client) -> None:
    allowed: dict[str, set[str]] = {"/openapi.json": {"GET", "HEAD"}}
    for operation in SERVED + FORBIDDEN:
        assert operation.http
        methods = allowed.setdefault(path_of(operation), set())
        methods |= {"GET", "HEAD"} if operation.http[0] == "GET" else {operation.http[0]}
    for path, methods in allowed.items():
        for method in set(METHODS) - methods:
            for body in (None, b"{}"):
                answer = http.request(method, path, content=body, headers={"Content-Type": "application/json"})
                assert (answer.status_code, answer.json()["code"]) == (405, "invalid-request"), (method, path)
                assert set(answer.headers["Allow"].split(", ")) == methods
    assert asked(door) == []


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/agents/", "/v1/agents/a/run/", "/v1/agents/a%2Fb/run",
                                  "//v1/agents"])
def test_an_unknown_path_is_not_found(door: DoorProcess, http: httpx.Client, path: str) -> None:
    answer = http.get(door.url + path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "location" not in answer.headers


def test_query_parameters_have_their_kinds(door: DoorProcess, http: httpx.Client) -> None:
    door.peer.on("session.list", {"sessions": [], "total": 0})
    http.get("/v1/agents/a/sessions?limit=5")
    http.get("/v1/agents/a/sessions?limit=five&x=1")
    assert asked(door) == [{"agent": "a", "limit": 5}, {"agent": "a", "limit": "five", "x": "1"}]
    door.peer.on("run.list", {"runs": []})
    http.get("/v1/execlog?since=1790000000.5&until=2026-01-31T12:00:00Z")
    assert asked(door)[2:] == [{"since": 1790000000.5, "until": "2026-01-31T12:00:00Z"}]
    door.peer.on("run.show", {})
    # As many digits as a number has in somebody's language; what is none stays text, for the daemon to refuse.
    for text, value in (("52.72318084793346", 52.72318084793346), ("1e-05", 1e-05), ("5E+0", 5.0), ("0", 0.0),
                        ("-1", -1.0), ("-1e308", -1e308), ("1e308", 1e308), ("1e999", "1e999"), ("NaN", "NaN"),
                        ("1_0", "1_0"), (".5", ".5"), ("", "")):
        assert http.get("/v1/runs/r-1", params={"wait": text}).status_code == 200
        assert door.peer.requests.pop()["params"] == {"run_id": "r-1", "wait": value}
    for query in ("limit=1&limit=2", "agent=b", "x=%ff", "&".join(f"a{n}=1" for n in range(50))):
        assert http.get(f"/v1/agents/a/sessions?{query}").status_code == 400, query
    assert http.post(RUN + "?timeout_s=1", json={"input": 1}).status_code == 400
    assert len(asked(door)) == 3


def test_health_metrics_and_head(door: DoorProcess, http: httpx.Client) -> None:
    door.peer.on("metrics", {"text": "orpheus_runs 1\n"})
    assert http.get("/v1/health").json() == {"status": "ok"}
    metrics = http.get("/metrics")
    assert metrics.text == "orpheus_runs 1\n"
    assert metrics.headers["Content-Type"].startswith("text/plain")
    head = http.head("/v1/health")
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", "15")


def test_openapi_lists_the_routes(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {one.http[1] for one in SERVED + FORBIDDEN if one.http}


def test_every_answer_has_the_security_headers(door: DoorProcess) -> None:
    for request in (b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"nonsense\r\n\r\n",
                    b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n",
                    post(b'{"input":1}'), b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 20_000 + b"\r\n\r\n"):
        head = door.exchange(request).partition(b"\r\n\r\n")[0].lower()
        assert b"\r\nx-content-type-options: nosniff" in head, request[:40]
        assert b"\r\ncache-control: no-store" in head
        assert b"\r\ncontent-security-policy: default-src 'none'" in head
        assert b"\r\nserver:" not in head and b"access-control" not in head


def test_many_requests_are_in_flight_and_each_gets_its_own_answer(door: DoorProcess, http: httpx.Client) -> None:
    waiting: list[tuple[Any, dict[str, Any]]] = []

    def answer_all_in_reverse(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        waiting.append((id, params))
        if len(waiting) == 20:
            for one in reversed(waiting):
                echo(peer, *one)

    door.peer.scripts["run"] = answer_all_in_reverse
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: http.post(RUN, json={"input": n}).json()["result"], range(20)))
    assert answers == list(range(20))


def test_pipelined_requests_are_answered_in_order(door: DoorProcess) -> None:
    # fault 70
    with door.connect(1.0) as client:
        client.sendall(b"".join(post(b'{"input":%d}' % n) for n in range(5)))
        received = until_quiet(client)
    bodies = [json.loads(part.split(b"\r\n\r\n")[1]) for part in received.split(b"HTTP/1.1 200 ")[1:]]
    assert [body["result"] for body in bodies] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("request_bytes", [
    post(b'{"input":[1]}', b"X-Session-ID: s-1"), post(b'{"input":[1]}', b"X-Session-Overlap: mad"), post(b"no"),
    post(b'{"input":1}', path=b"/v1/nowhere"), post(b'{"input":1}', path=b"/v1/agents/%C3%A4/run"),
    post(b'{"input":1}').replace(b"localhost", b"elsewhere"), post(b'{"input":1}').replace(b"/json", b"/xml"),
    post(b'{"input":1}', b"X-A: \xe4"), post(b'{"input":1}', b"Connection: close"), post(b""),
    post(b'{"input":1}').replace(b"HTTP/1.1", b"HTTP/1.0")])
def test_a_request_is_answered_the_same_whether_it_arrives_whole_or_in_two(
        door: DoorProcess, request_bytes: bytes) -> None:
    with door.connect() as whole, door.connect() as halves:
        whole.sendall(request_bytes)
        first = first_answer(whole)
        halves.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        halves.sendall(request_bytes[:10])
        # Another request, answered meanwhile, shows that the door has read the first half.
        assert door.exchange(post(b'{"input":1}'))
        halves.sendall(request_bytes[10:])
        second = first_answer(halves)
    assert first.startswith(b"HTTP/1.1 ")
    assert re.sub(rb"date: [^\r]*", b"", first) == re.sub(rb"date: [^\r]*", b"", second)


def test_a_client_that_leaves_does_not_stop_its_run(door: DoorProcess, http: httpx.Client) -> None:
    # fault 60
    door.peer.scripts["run"] = never
    with door.connect() as client:
        client.sendall(post(b'{"input":1}'))
        request = door.peer.awaited("run")[0]
    door.peer.scripts["run"] = echo
    assert http.get("/v1/health").status_code == 200
    door.peer.answer(request["id"], run_result())  # to nobody
    assert http.post(RUN, json={"input": 2}).json()["result"] == 2
    assert {one["method"] for one in door.peer.requests} == {"run", "health"}, "nothing was cancelled"


def test_a_client_that_only_stops_sending_gets_its_answer(door: DoorProcess) -> None:
    door.peer.scripts["run"] = never
    with door.connect() as client:
        client.sendall(post(b'{"input":1}'))
        client.shutdown(socket.SHUT_WR)
        request = door.peer.awaited("run")[0]
        door.peer.answer(request["id"], run_result(result="late"))
        assert b'"late"' in until_closed(client)


def test_a_fault_of_the_door_is_internal_and_only_the_log_knows_more(door: DoorProcess, http: httpx.Client) -> None:
    door.peer.on("run", {"no": "worker_id", "result": 1})
    answer = http.post(RUN, json={"input": 1})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "KeyError" not in answer.text
    assert "KeyError" in door.log and "Traceback" in door.log
    door.peer.scripts["run"] = echo
    assert http.post(RUN, json={"input": 1}).status_code == 200


def test_an_input_that_grows_beyond_a_frame_is_refused_and_harms_nobody(http: httpx.Client) -> None:
    body = b'{"input":[' + b"1e15," * 1_600_000 + b"1]}"
    answer = http.post(RUN, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert http.get("/v1/health").status_code == 200


def test_more_than_one_listening_socket_is_served(shared: DoorProcess) -> None:
    assert httpx.get(f"http://[::1]:{shared.port6}/v1/health").status_code == 200


def test_a_wrong_limit_is_a_clear_error_at_start(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", nonsense=1) as door:
        assert door.exit_code() == 2
        assert "there is no limit 'nonsense'" in door.log
