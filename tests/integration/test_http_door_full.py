"""A door whose connections are all in use: whoever keeps it waiting is let go for who comes, and nobody else is."""

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from orpheusd.operations import Access
from tests.eventually import eventually
from tests.integration.door_peer import (
    DoorProcess,
    Peer,
    first_answer,
    never,
    post,
    run_result,
    until_closed,
    until_quiet,
)

BODY = b'{"input":1}'
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAIT = b"GET /v1/runs/r-1?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1024 * 1024
#: No deadline of the door makes room while a test waits.
PATIENT = {"header_deadline_s": 600.0, "body_deadline_s": 600.0, "keep_alive_s": 600.0, "linger_s": 600.0,
           "send_deadline_s": 600.0}


def idle(client: socket.socket) -> None:
    client.sendall(HEALTH)
    assert first_answer(client)


def silent_body(client: socket.socket) -> None:
    client.sendall(post(BODY)[:-len(BODY)])


def refused(client: socket.socket) -> None:
    client.sendall(b"nonsense\r\n\r\n")
    assert first_answer(client)


FILLED: dict[str, Callable[[socket.socket], None]] = {
    "idle": idle,
    "no head": lambda client: None,
    "half a head": lambda client: client.sendall(b"POST /v1/agents/a/run HTTP/1.1\r\nHo"),
    "half a second head": lambda client: (idle(client), client.sendall(b"GET"))[0],
    "no body": silent_body,
    "half a body": lambda client: client.sendall(post(BODY)[:-3]),
    "a chunk": lambda client: client.sendall(
        post(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + b"3\r\nabc\r\n"),
    "a body after the go-ahead": lambda client: client.sendall(post(BODY, b"Expect: 100-continue")[:-len(BODY)]),
    "no bundle": lambda client: client.sendall(post(BODY, b"Authorization: Bearer t", path=b"/v1/deploy").replace(
        b"application/json", b"application/gzip")[:-len(BODY)]),
    "refused": refused,
}


@pytest.mark.parametrize("kind", FILLED)
def test_a_full_door_serves_who_comes(tmp_path: Path, kind: str) -> None:
    # fault 63: also those that come together, of whom none is let go for another
    with (DoorProcess(tmp_path / "log", token="t", guard=[Access.ADMIN], connections=8, **PATIENT) as door,
          door.clients(8) as clients):
        for client in clients:
            FILLED[kind](client)
        with come(door, *[HEALTH] * 30) as newcomers:
            for newcomer in newcomers:
                assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        assert door.log == ""


def test_who_was_sending_a_body_is_told_to_try_again(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", connections=1, **PATIENT) as door, door.connect() as client:
        silent_body(client)
        assert httpx.get(f"{door.url}/v1/health", timeout=5).status_code == 200
        head, _, body = until_closed(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in head
        assert b"\r\nconnection: close\r\n" in head and b"\r\nx-content-type-options: nosniff" in head
        assert json.loads(body)["code"] == "overloaded"


def test_the_idle_go_first_then_heads_then_bodies(tmp_path: Path) -> None:
    """Each newcomer has a run that goes on, so that the next one needs the place of another."""
    with DoorProcess(tmp_path / "log", connections=4, **PATIENT) as door, ExitStack() as stack:
        door.until_up()
        body, spoke, head, last = stack.enter_context(door.clients(4))
        door.peer.scripts["run"] = never
        for client in (spoke, body):
            silent_body(client)
            assert until_quiet_for(client, 0.3) == b""
        spoke.sendall(BODY[:3])
        head.sendall(b"GET")
        assert until_quiet_for(head, 0.3) == b""
        idle(last)
        for number, gone in enumerate((last, head, body, spoke), 1):
            stack.enter_context(come(door, post(BODY)))
            door.peer.awaited("run", number)
            assert (b" 503 " in until_closed(gone)) == (gone in (body, spoke))


@pytest.mark.parametrize("first", ["who waits", "who comes"])
def test_who_has_spoken_in_time_stays_although_the_door_was_slow(tmp_path: Path, first: str) -> None:
    with DoorProcess(tmp_path / "log", connections=1, **PATIENT) as door, ExitStack() as stack:
        door.until_up()
        client = stack.enter_context(door.connect())
        client.sendall(HEALTH[:9])
        assert until_quiet_for(client, 0.4) == b""
        door.process.send_signal(signal.SIGSTOP)
        eventually(lambda: psutil.Process(door.process.pid).status() == psutil.STATUS_STOPPED)
        try:
            if first == "who waits":
                client.sendall(HEALTH[9:])
            with come(door, HEALTH) as (newcomer,):
                if first == "who comes":
                    client.sendall(HEALTH[9:])
                door.process.send_signal(signal.SIGCONT)
                assert first_answer(client).startswith(b"HTTP/1.1 200 ")
                assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        finally:
            door.process.send_signal(signal.SIGCONT)


def test_a_run_that_goes_on_is_never_let_go(tmp_path: Path) -> None:
    with (DoorProcess(tmp_path / "log", connections=4, **PATIENT) as door, door.clients(3) as runs,
          ExitStack() as stack):
        door.peer.scripts["run"] = never
        runs[0].sendall(post(BODY))
        runs[1].sendall(post(BODY)[:-1])  # the long way, in two pieces
        runs[2].sendall(post(BODY, b"Accept: text/event-stream"))
        door.peer.awaited("run", 2)
        runs[1].sendall(BODY[-1:])
        calls = [one["id"] for one in door.peer.awaited("run", 3)]
        with come(door, *[HEALTH] * 20) as newcomers:
            for newcomer in newcomers:  # each in the place of one before
                assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        with come(door, post(BODY)) as (fourth,):
            calls.append(door.peer.awaited("run", 4)[-1]["id"])
            fifth = stack.enter_context(door.connect())
            fifth.sendall(HEALTH)
            assert until_quiet_for(fifth, 0.5) == b"", "all four are being answered"
            for call in calls:
                door.peer.answer(call, run_result())
            for client in (runs[0], runs[1], fourth):
                assert first_answer(client).startswith(b"HTTP/1.1 200 ")
            received = b""
            while b"event: result" not in received:
                received += runs[2].recv(65536)
            assert first_answer(fifth).startswith(b"HTTP/1.1 200 "), "there is room again"


def show(peer: Peer, id: int, params: dict[str, object]) -> None:
    """A run that goes on for longer than anybody waits."""
    if not params.get("wait"):
        peer.answer(id, {"state": "started"})


def test_reads_that_wait_are_answered_early_for_who_comes(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", connections=8, **PATIENT) as door, door.clients(8) as clients:
        door.peer.scripts["run.show"] = show
        for number, client in enumerate(clients, 1):
            client.sendall(WAIT)
            door.peer.awaited("run.show", number)
        with come(door, HEALTH) as (newcomer,):
            assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        head, _, body = until_closed(clients[0]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in head.lower() + b"\r\n"
        assert json.loads(body) == {"state": "started"}
        assert until_quiet_for(clients[1], 0.3) == b"", "one goes for one that comes, and it is the first"
        with come(door, *[HEALTH] * 10) as newcomers:
            for newcomer in newcomers:
                assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        assert door.log == ""


def test_reads_that_wait_again_and_again_keep_nobody_out(tmp_path: Path) -> None:
    """Each client asks again as soon as it was answered, over a connection of its own; they are many for one that
    comes."""
    over = threading.Event()

    def waits_on(door: DoorProcess) -> None:
        while not over.is_set():
            with suppress(OSError), door.connect(20) as client:
                client.sendall(WAIT)
                first_answer(client)

    with DoorProcess(tmp_path / "log", connections=8, **PATIENT) as door, ThreadPoolExecutor(16) as pool:
        door.peer.scripts["run.show"] = show
        for _ in range(16):
            pool.submit(waits_on, door)
        try:
            door.peer.awaited("run.show", 8)
            for _ in range(3):
                assert httpx.get(f"{door.url}/v1/health", timeout=20).status_code == 200
        finally:
            over.set()
            door.peer.on("run.show", {})
            for call in list(door.peer.requests):
                if call["method"] == "run.show":
                    door.peer.answer(call["id"], {})


def test_no_wait_is_cut_short_while_somebody_can_go(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", connections=2, **PATIENT) as door, door.clients(2) as (waits, other):
        door.peer.scripts["run.show"] = show
        waits.sendall(WAIT)
        call = door.peer.awaited("run.show")[0]["id"]
        idle(other)
        for _ in range(20):  # each in the place of the one before
            assert httpx.get(f"{door.url}/v1/health", timeout=5).status_code == 200
        door.peer.answer(call, {"state": "completed"})
        assert first_answer(waits).endswith(b'{"state":"completed"}')


def test_who_leaves_a_wait_leaves_no_connection_behind(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", connections=1, **PATIENT) as door:
        door.peer.scripts["run.show"] = never
        for number in range(1, 4):
            with door.connect() as client:
                client.sendall(WAIT)
                call = door.peer.awaited("run.show", number)[-1]["id"]
            assert door.peer.awaited("gone", number)[-1]["params"] == {"id": call}
        assert httpx.get(f"{door.url}/v1/health", timeout=5).status_code == 200


def test_who_reads_its_answer_slowly_gets_all_of_it(tmp_path: Path) -> None:
    def long(peer: Peer, id: int, _params: object) -> None:
        peer.answer(id, run_result(result="x" * (8 * MIB)))

    with DoorProcess(tmp_path / "log", connections=2, **PATIENT) as door, door.clients(1, 4096) as (slow,):
        door.peer.scripts["run"] = long
        slow.sendall(post(BODY))
        door.peer.awaited("run")
        with come(door, *[HEALTH] * 20) as newcomers:
            for newcomer in newcomers:  # each in the place of one before
                assert first_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        assert len(first_answer(slow)) > 8 * MIB


@contextmanager
def come(door: DoorProcess, *requests: bytes) -> Iterator[list[socket.socket]]:
    """A client for each request, all of them at the door together. Nothing is between its coming and its asking."""
    with ExitStack() as stack:
        clients = []
        for request in requests:
            clients.append(stack.enter_context(door.connect()))
            clients[-1].sendall(request)
        yield clients


def until_quiet_for(client: socket.socket, timeout_s: float) -> bytes:
    client.settimeout(timeout_s)
    try:
        return until_quiet(client)
    finally:
        client.settimeout(10)
