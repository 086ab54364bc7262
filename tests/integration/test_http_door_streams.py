"""Runs as server-sent events: what a stream says, and that a slow or absent reader hurts nobody."""

import json
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.eventually import eventually
from tests.integration.door_peer import DoorProcess, Peer, never, post, run_result, until_closed

RUN = "/v1/agents/a/run"
SSE = {"Accept": "text/event-stream"}


class Said(NamedTuple):
    id: int
    event: str
    data: Any


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorProcess]:
    with DoorProcess(tmp_path_factory.mktemp("door") / "log", heartbeat_s=0.1, stream_open_s=0.15) as one:
        yield one


@pytest.fixture
def door(shared: DoorProcess) -> Iterator[DoorProcess]:
    scripts = dict(shared.peer.scripts)
    shared.peer.requests.clear()
    yield shared
    shared.peer.scripts = scripts


def events(text: str) -> list[Said]:
    said = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            said.append(Said(int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return said


def stream(door: DoorProcess, **body: Any) -> httpx.Response:
    return httpx.post(door.url + RUN, json={"input": 1, **body}, headers=SSE, timeout=10)


def test_events_then_the_result(door: DoorProcess) -> None:
    def script(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        peer.event(id, "output", {"token": "a\nb"}, 0)
        peer.event(id, "log", {"stream": "stdout", "text": "hi"}, 1)
        peer.event(id, "dropped", {"count": 3}, 2)
        peer.answer(id, run_result(result="all"))

    door.peer.scripts["run"] = script
    answer = stream(door, session_id="u")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert events(answer.text) == [
        (0, "output", {"token": "a\nb"}), (1, "log", {"stream": "stdout", "text": "hi"}),
        (2, "dropped", {"count": 3}), (3, "result", run_result(result="all"))]
    assert door.peer.requests[0]["params"] == {"agent": "a", "input": 1, "session_id": "u", "stream": True}


def test_events_in_another_form_are_understood(door: DoorProcess) -> None:
    def script(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        event = {"params": {"seq": 0, "data": [1], "event": "output", "id": id}, "method": "run.event"}
        peer.send_line(json.dumps(event).encode())
        peer.answer(id, run_result())

    door.peer.scripts["run"] = script
    assert events(stream(door).text)[0] == (0, "output", [1])


def test_a_refusal_before_the_stream_began_is_a_plain_error(door: DoorProcess) -> None:
    door.peer.on("run", OrpheusError("not-found", "there is no agent a"))
    answer = stream(door)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_an_error_after_it_began_is_an_event(door: DoorProcess) -> None:
    def script(peer: Peer, id: Any, params: dict[str, Any]) -> None:
        peer.event(id, "output", 1, 0)
        peer.refuse(id, OrpheusError("handler-failed", "it broke", {"request_id": "r-3"}))

    door.peer.scripts["run"] = script
    answer = stream(door)
    assert answer.status_code == 200
    assert events(answer.text) == [
        (0, "output", 1), (1, "error", {"request_id": "r-3", "error": "it broke", "code": "handler-failed"})]


def test_a_quiet_stream_has_heartbeats(door: DoorProcess) -> None:
    door.peer.scripts["run"] = never
    with httpx.stream("POST", door.url + RUN, json={"input": 1}, headers=SSE, timeout=5) as answer:
        lines = answer.iter_lines()
        started = time.monotonic()
        assert [next(lines) for _ in range(6)] == [": heartbeat", ""] * 3
        assert time.monotonic() - started < 2
        door.peer.answer(door.peer.awaited("run")[0]["id"], run_result(result="late"))
        assert "late" in "\n".join(lines)


def test_a_client_that_leaves_a_stream_leaves_the_run(door: DoorProcess) -> None:
    # fault 60
    door.peer.scripts["run"] = never
    with door.connect() as client:
        client.sendall(post(b'{"input":1}', b"Accept: text/event-stream"))
        id = door.peer.awaited("run")[0]["id"]
        door.peer.event(id, "output", 1, 0)
        assert b"200" in client.recv(1000)
    for seq in range(1, 50):
        door.peer.event(id, "output", "x" * 1000, seq)
    door.peer.answer(id, run_result())
    assert httpx.get(f"{door.url}/v1/health").status_code == 200
    asked = [one["method"] for one in door.peer.requests]
    assert [method for method in asked if method != "gone"] == ["run", "health"], "nothing was cancelled"


def test_a_fast_run_overflows_no_fast_reader(tmp_path: Path) -> None:
    """Bursts of four times what a stream may hold, 10 MB in all, to a reader who has read each before the next.

    How soon this process gets to read is the machine's business: the kernel takes a burst for it meanwhile.
    """
    burst, bursts = 1_000, 20
    with DoorProcess(tmp_path / "log", stream_queue_bytes=128 * 1024) as door:
        door.peer.scripts["run"] = never
        with httpx.stream("POST", door.url + RUN, json={"input": 1}, headers=SSE, timeout=10) as answer:
            id = door.peer.awaited("run")[0]["id"]
            lines = answer.iter_lines()
            for first in range(0, burst * bursts, burst):
                door.peer.socket.sendall(b"".join(
                    b'{"jsonrpc":"2.0","method":"run.event","params":{"id":%d,"event":"output","data":"%b","seq":%d}}\n'
                    % (id, b"x" * 450, seq) for seq in range(first, first + burst)))
                said = list(islice((line for line in lines if line.startswith("id: ")), burst))
                assert said == [f"id: {seq}" for seq in range(first, first + burst)]
            door.peer.answer(id, run_result(result="end"))
            assert "event: result" in list(lines)


def test_a_slow_reader_loses_its_stream_and_nothing_else(tmp_path: Path) -> None:
    # fault 61
    with DoorProcess(tmp_path / "log", send_deadline_s=1.0) as door:
        door.peer.scripts["run"] = never
        assert httpx.get(f"{door.url}/v1/health").status_code == 200
        before = door.rss_bytes()
        with door.connect(receive_bytes=4096) as slow:
            slow.sendall(post(b'{"input":1}', b"Accept: text/event-stream", b"Connection: close"))
            id = door.peer.awaited("run")[0]["id"]
            for seq in range(1000):
                door.peer.event(id, "output", "x" * 20_000, seq)  # 20 MB; must never block
            started = time.monotonic()
            assert httpx.get(f"{door.url}/v1/health").status_code == 200
            assert time.monotonic() - started < 2
            assert door.rss_bytes() - before < 16 * 1024 * 1024
            received = until_closed(slow).decode()
        last = events("id: " + re.sub(r"\r\n[0-9a-f]*\r\n|\r\n", "", received).rpartition("id: ")[2])
        assert last[0].event == "error" and last[0].data["code"] == "overloaded"
        door.peer.answer(id, run_result())
        assert door.log == ""


def test_a_reader_that_never_reads_is_dropped(tmp_path: Path) -> None:
    # fault 61
    with DoorProcess(tmp_path / "log", send_deadline_s=0.3) as door:
        door.peer.scripts["run"] = never
        with door.clients(10, receive_bytes=4096) as stuck:
            for client in stuck:
                client.sendall(post(b'{"input":1}', b"Accept: text/event-stream"))
            calls = [one["id"] for one in door.peer.awaited("run", 10)]
            before = _files(door)
            for seq in range(300):
                for call in calls:
                    door.peer.event(call, "output", "x" * 20_000, seq)
            eventually(lambda: _files(door) <= before - 10, what="the stuck clients to be dropped")
        assert door.log == ""


def _files(door: DoorProcess) -> int:
    return len(list(Path(f"/proc/{door.process.pid}/fd").iterdir()))
