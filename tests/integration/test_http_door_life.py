"""How the HTTP door ends: with its daemon, when that tells it to, and in bounded time whatever its clients do."""

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.process.sandbox import detect
from orpheusd.wire.control import DRAIN, STOP, order
from tests.eventually import eventually
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

BODY = b'{"input":1}'
RUN = "/v1/agents/a/run"


def told_to_stop(door: DoorProcess) -> None:
    door.peer.send(order(STOP))


def terminated(door: DoorProcess) -> None:
    door.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("tell", [told_to_stop, terminated])
def test_stop_finishes_what_is_being_answered_and_ends_streams(
        tmp_path: Path, tell: Callable[[DoorProcess], None]) -> None:
    # faults 43, 46
    with DoorProcess(tmp_path / "log") as door:
        door.peer.scripts["run"] = never
        with door.connect() as plain, door.connect() as stream, door.connect() as idle:
            idle.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            first_answer(idle)
            plain.sendall(post(BODY))
            call = door.peer.awaited("run")[0]["id"]
            stream.sendall(post(BODY, b"Accept: text/event-stream"))
            streamed = door.peer.awaited("run", 2)[1]["id"]
            door.peer.event(streamed, "output", 1, 0)
            while b"event: output" not in stream.recv(1000):
                pass
            for _ in range(100):
                tell(door)
            assert until_closed(idle) == b""
            assert b'"code":"draining"' in until_closed(stream)
            assert door.process.poll() is None, "a request is still being answered"
            door.peer.answer(call, run_result(result="in time"))
            assert b'"in time"' in until_closed(plain)
        assert door.exit_code() == 0
        assert door.log == ""


def test_stop_accepts_nobody_new(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log") as door:
        door.peer.scripts["run"] = never
        with door.connect() as plain, door.connect() as idle:
            idle.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            first_answer(idle)
            plain.sendall(post(BODY))
            call = door.peer.awaited("run")[0]["id"]
            told_to_stop(door)
            assert until_closed(idle) == b"", "the door has heard it"
            with door.connect(0.3) as new:  # into the backlog, for the next door
                new.sendall(post(BODY))
                assert until_quiet(new) == b""
            door.peer.answer(call, run_result())
            assert first_answer(plain)
        assert door.exit_code() == 0
        assert [one["method"] for one in door.peer.requests].count("run") == 1, "the backlog is for the next door"


def test_stop_ends_within_the_grace_under_load(tmp_path: Path) -> None:
    """Streams that are read and that are not, runs that never end, readers that never read, half requests."""
    # fault 46
    with DoorProcess(tmp_path / "log", grace_s=0.5) as door, door.clients(120, receive_bytes=4096) as clients:
        door.peer.scripts["run"] = never
        for client in clients[:40]:
            client.sendall(post(BODY, b"Accept: text/event-stream"))
        for client in clients[40:80]:
            client.sendall(post(BODY))
        for client in clients[80:]:
            client.sendall(post(BODY)[:-1])
        requests = door.peer.awaited("run", 80)
        for request in requests:
            if request["params"].get("stream"):
                door.peer.event(request["id"], "output", "x" * 500_000, 0)
        started = time.monotonic()
        told_to_stop(door)
        assert door.exit_code() == 0
        assert time.monotonic() - started < 3
        assert door.log == ""


def test_drain_answers_all_who_were_accepted_and_nobody_else(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", grace_s=0.1) as door:
        door.peer.scripts["run"] = never
        with door.connect() as plain, door.connect() as stream, door.connect() as idle:
            idle.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            first_answer(idle)
            plain.sendall(post(BODY))
            stream.sendall(post(BODY, b"Accept: text/event-stream"))
            calls = [call["id"] for call in door.peer.awaited("run", 2)]
            for _ in range(100):
                door.peer.send(order(DRAIN))
            assert until_closed(idle) == b"", "the door has heard it"
            with door.connect(0.3) as new:  # into the backlog, for the next door
                new.sendall(post(BODY))
                assert until_quiet(new) == b""
            assert door.process.poll() is None, "there is no grace after which it would leave"
            for call in calls:
                door.peer.answer(call, run_result(result="in time"))
            assert b'"in time"' in until_closed(plain)
            assert b'"in time"' in until_closed(stream)
        assert door.exit_code() == 0


@pytest.mark.parametrize("name", [DRAIN, STOP])
@pytest.mark.parametrize("wanted", ["auto", "none"])
def test_a_door_that_is_not_up_yet_leaves_when_it_is(tmp_path: Path, wanted: str, name: str) -> None:
    isolation = detect(wanted)
    if isolation.mode == "none" and wanted == "auto":
        pytest.skip(isolation.reason)
    with DoorProcess(tmp_path / "log", isolation=isolation, told=name) as door:
        assert door.exit_code() == 0
        assert door.log == ""


def test_the_door_ends_with_its_daemon(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log") as door:
        door.peer.scripts["run"] = never
        with ThreadPoolExecutor(2) as pool:
            plain = pool.submit(httpx.post, door.url + RUN, json={"input": 1})
            stream = pool.submit(
                httpx.post, door.url + RUN, json={"input": 1}, headers={"Accept": "text/event-stream"})
            door.peer.awaited("run", 2)
            door.peer.close()
            for answer in (plain.result(), stream.result()):
                assert (answer.status_code, answer.json()["code"]) == (503, "unreachable")
        assert door.exit_code() == 0


def test_a_daemon_that_dies_after_answering_has_answered(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log") as door:
        door.peer.scripts["run"] = never
        with ThreadPoolExecutor(20) as pool:
            answers = [pool.submit(httpx.post, door.url + RUN, json={"input": n}) for n in range(20)]
            for request in door.peer.awaited("run", 20):
                echo(door.peer, request["id"], {**request["params"], "input": "x" * 30_000})
            door.peer.close()
            assert [answer.result().status_code for answer in answers] == [200] * 20


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b'{"jsonrpc":"2.0","id":1}', b"x" * 17_000_000])
def test_a_daemon_that_talks_nonsense_is_left(tmp_path: Path, line: bytes) -> None:
    def say(peer: Peer, _id: Any, _params: dict[str, Any]) -> None:
        with suppress(OSError):  # the door need not hear it to the end
            peer.send_line(line)

    with DoorProcess(tmp_path / "log") as door:
        door.peer.scripts["run"] = say
        answer = httpx.post(door.url + RUN, json={"input": 1})
        assert (answer.status_code, answer.json()["code"]) == (503, "unreachable")
        assert door.exit_code() == 0


def test_a_daemon_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", read_deadline_s=0.2) as door:
        door.peer.scripts["health"] = never
        answer = httpx.get(f"{door.url}/v1/health")
        assert (answer.status_code, answer.json()["code"]) == (503, "unreachable")


def test_a_terminals_interrupt_is_left_to_the_daemon(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log") as door:
        assert httpx.get(f"{door.url}/v1/health").status_code == 200
        door.process.send_signal(signal.SIGINT)
        assert httpx.get(f"{door.url}/v1/health").status_code == 200
        assert door.process.poll() is None


def test_a_door_holds_only_what_it_was_given(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log") as door:
        assert httpx.get(f"{door.url}/v1/health").status_code == 200
        before = _files(door)
        for _ in range(50):
            assert json.loads(door.exchange(post(BODY)).partition(b"\r\n\r\n")[2])["result"] == 1
        eventually(lambda: _files(door) <= before)


def _files(door: DoorProcess) -> int:
    return len(list(Path(f"/proc/{door.process.pid}/fd").iterdir()))
