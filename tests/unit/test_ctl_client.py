"""orpheusctl/client.py and the wait for a run, against the other end of a real socket."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpheusctl import client, run
from orpheusctl.client import Answer, Client, Event
from orpheusctl.interrupts import Interrupts
from orpheusctl.output import Output
from orpheusd.errors import OrpheusError
from orpheusd.wire import control


@pytest.fixture
def ends() -> Iterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    with Client(ours, "socketpair") as asking, theirs:
        yield asking, theirs


def tell(sock: socket.socket, *values: dict[str, Any]) -> None:
    sock.sendall(b"".join(json.dumps(value).encode() + b"\n" for value in values))


def test_messages_come_in_order_however_they_are_cut(ends: tuple[Client, socket.socket]) -> None:
    asking, daemon = ends
    assert asking.send("run", {"agent": "ü"}) == 1
    assert json.loads(daemon.recv(1000)) == control.request(1, "run", {"agent": "ü"})
    frames = json.dumps(control.event(1, "run", {"event": "output", "data": "ü", "seq": 1})) + "\n" + json.dumps(
        control.answer(1, {"result": 2})) + "\n"
    for byte in frames.encode()[:30]:
        daemon.sendall(bytes([byte]))
    assert asking.receive(0) is None
    daemon.sendall(frames.encode()[30:])
    assert asking.receive(1) == Event(1, "output", "ü")
    assert asking.receive(1) == Answer(1, {"result": 2}, None)
    assert asking.receive(0.01) is None


def test_an_answer_to_another_request_is_not_taken(ends: tuple[Client, socket.socket]) -> None:
    asking, daemon = ends
    tell(daemon, control.answer(99, "other"), control.answer(1, "ours"))
    assert asking.call("status", {}) == "ours"
    tell(daemon, control.refusal(2, OrpheusError("conflict", "not now", {"hint": 1})))
    with pytest.raises(OrpheusError, match="not now") as caught:
        asking.call("status", {})
    assert (caught.value.code, caught.value.details) == ("conflict", {"hint": 1})


def test_a_refusal_of_the_connection_itself_is_an_error(ends: tuple[Client, socket.socket]) -> None:
    asking, daemon = ends
    tell(daemon, control.refusal(None, OrpheusError("permission-denied", "you may not")))
    daemon.close()
    with pytest.raises(OrpheusError, match="you may not"):
        asking.call("status", {})


@pytest.mark.parametrize("line", [b"hello\n", b"[1]\n", b"[" * 100_000 + b"\n", b"\xff\n"])
def test_what_cannot_be_read_is_a_fault_of_the_daemon(ends: tuple[Client, socket.socket], line: bytes) -> None:
    asking, daemon = ends
    daemon.sendall(line)
    with pytest.raises(OrpheusError) as caught:
        asking.call("status", {})
    assert caught.value.code == "internal"


def test_a_silent_daemon_is_given_up(ends: tuple[Client, socket.socket]) -> None:
    with pytest.raises(OrpheusError, match="has not answered status") as caught:
        ends[0].call("status", {}, within_s=0.05)
    assert caught.value.code == "unreachable"


def test_a_daemon_that_does_not_read_is_given_up(
    ends: tuple[Client, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SEND_DEADLINE_S", 0.05)
    with pytest.raises(OrpheusError, match="has not read"):
        ends[0].send("run", {"input": "x" * 4_000_000})


def test_a_full_backlog_is_given_up_after_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_DEADLINE_S", 1)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(OrpheusError, match="too many connections are waiting") as caught:
            client.connect(path)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(OrpheusError) as caught:
        client.encode({"input": value})
    assert caught.value.code == "invalid-request"


@pytest.mark.parametrize("accepted", [True, False])
def test_the_wait_after_a_cancel_is_bounded(
    ends: tuple[Client, socket.socket], monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    monkeypatch.setattr(run, "CANCEL_WAIT_S", 0.1)
    asking, daemon = ends
    output = Output("orpheusctl")
    with Interrupts() as interrupts:
        interrupts.count = 1
        request_id = asking.send("run", {})
        daemon.recv(1000)
        tell(daemon, control.event(request_id, "run", {"event": "accepted" if accepted else "log",
                                                       "data": {"request_id": "r-1"}}))
        with pytest.raises(OrpheusError, match="has not confirmed") as caught:
            run._Waiting(asking, request_id, interrupts, run.Quiet(output), output).until_answered()
    assert caught.value.outcome.exit_code == 130
    if accepted:
        assert json.loads(daemon.recv(1000)) == control.request(2, "run.cancel", {"run_id": "r-1"})
