"""Misuse of a real daemon's HTTP door, and names that want to be more than names. Faults 61, 63, 66, 67 and 70.

What the door alone must do is in tests/integration/test_http_door_guard.py, with a daemon of paper behind it.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.holdings import state, stored
from tests.integration.door_peer import first_answer, post

NewDaemon = Callable[..., Daemon]

#: Says more than the kernel and the door hold for a client that does not read, and prints what terminals obey.
TALKS = r"""
def handler(input_data):
    effect()
    for _ in range(input_data.get("pieces", 0)):
        yield "x" * 60_000
    for text in input_data.get("prints", ()):
        print(text)
    if "raises" in input_data:
        raise ValueError(input_data["raises"])
    return "done"
"""
#: Moves the cursor, sets the title, ends a line, starts a header, reverses the text.
TERMINAL = ["\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "a\rb", "ok\r\nSet-Cookie: a=b", "\x00\x08\x7f", "\u202egnp.exe",
            "\x9b31m", "2026-01-01T00:00:00 CRITICAL forged\nline"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon().start()
    try:
        one.deploy(witness(tmp_path_factory.mktemp("agents") / "talks", TALKS))
        yield one
    finally:
        one.close()


def connect(daemon: Daemon, stack: ExitStack, receive_bytes: int | None = None) -> socket.socket:
    assert daemon.http is not None
    client = stack.enter_context(socket.socket())
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(20)
    client.connect(("127.0.0.1", int(daemon.http.rpartition(":")[2])))
    return client


@pytest.mark.parametrize("readers", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.deadline(300)])])
def test_readers_of_one_byte_hold_up_no_run(daemon: Daemon, readers: int) -> None:
    # fault 61; I6 looks at the daemon's memory
    body = json.dumps({"input": {"pieces": 100}}).encode()
    before = len(stored(daemon, 0))
    with Aftermath(daemon) as after, ExitStack() as stack:
        clients = [connect(daemon, stack, receive_bytes=4096) for _ in range(readers)]
        for client in clients:
            client.sendall(post(body, b"Accept: text/event-stream", path=b"/v1/agents/talks/run"))
            assert client.recv(1)

        def all_over() -> bool:
            rows = stored(daemon, 0)[before:]
            return len(rows) == readers and {row.state for row in rows} == {"completed"}

        eventually(all_over, timeout_s=20 if readers < 100 else 120, what="runs that nobody reads to complete")
        assert [client.recv(1) for client in clients], "they read on"
        assert after.run("talks").code == ""


def test_a_thousand_slow_clients_keep_no_run_out(daemon: Daemon) -> None:
    # fault 63: in front of a real daemon; they are closed when 5 s have brought no header
    with Aftermath(daemon) as after, ExitStack() as stack:
        slow = [connect(daemon, stack) for _ in range(1000)]
        for client in slow:
            client.sendall(b"POST /v1/agents/talks/run HTTP/1.1\r\nHo")
        answer = httpx.post(f"{daemon.http}/v1/agents/talks/run", json={"input": {}}, timeout=6)
        assert answer.status_code == 200
        assert after.run("talks").code == ""
        assert slow[0].recv(10) == b""


#: Not one of them is a session id. Those of the first list can be written in a header.
PRINTABLE = ["", ".", "..", "../../etc/passwd", "a/b", "%2f", "%00", "a b", " a", "a\\b", "-a", "a" * 129,
             "a" * 10_240, "$(id)", "'; DROP TABLE runs; --", "a,b", "*"]
OTHERS = ["\x00", "a\x00b", "a\r\nX-Evil: 1", "a\n", "\x1b[2J", "\u202ea", "caf\u00e9", "cafe\u0301", "\U0001f600",
          "\uff0e\uff0e", "\ud800", "a\u200b", "\ufeff"]


def files(daemon: Daemon) -> list[str]:
    """Every file there is, but for what logs and databases come and go by themselves."""
    return sorted(str(path) for path in daemon.state_dir.rglob("*") if path.parent != daemon.state_dir)


@pytest.mark.parametrize("bad", [*PRINTABLE, *OTHERS], ids=lambda text: ascii(text[:20]))
def test_what_is_no_session_id_is_refused_at_both_doors_and_leaves_nothing(daemon: Daemon, bad: str) -> None:
    # fault 66
    path = f"{daemon.http}/v1/agents/talks/run"
    before = (files(daemon), state(daemon, 0))
    frame = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "run", "params": {
        "agent": "talks", "input": {}, "session_id": bad}}).encode()
    with daemon.connect() as control:
        control.socket.sendall(frame + b"\n")
        assert control.receive()["error"]["data"]["code"] == "invalid-request"
    answers = [httpx.post(path, content=json.dumps({"input": {}, "session_id": bad}),
                          headers={"Content-Type": "application/json"})]
    if bad in PRINTABLE and bad == bad.strip():  # HTTP takes the spaces around a value away
        answers += [httpx.post(path, json={"input": {}}, headers={name: bad})
                    for name in ("X-Session-ID", "Mcp-Session-Id")]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request"), answer.text
    assert (files(daemon), state(daemon, 0)) == before


def control_characters(text: str) -> set[str]:
    return {char for char in text if not char.isprintable() and char not in "\n\t"}


def test_what_agents_and_callers_say_obeys_no_terminal_and_forges_no_line(daemon: Daemon) -> None:
    # fault 67
    log_from = len(daemon.log)
    with Aftermath(daemon) as after:
        for text in TERMINAL:
            outcome = after.run("talks", {"prints": [text], "raises": text})
            assert outcome.code == "handler-failed"
            words = [("show", str(outcome.run_id)), ("runs", "talks"), ("logs", "talks", "-n", "20"),
                     ("run", "talks", json.dumps({"prints": [text], "raises": text}))]
            if "\x00" not in text:  # no command line can have it
                words += [("run", "talks", "{}", "--session", text), ("session", "show", "talks", text),
                          ("stats", text)]
            for one in [daemon.ctl(*args) for args in words]:
                assert control_characters(one.stdout + one.stderr) == set(), (one.args, one.stdout, one.stderr)
            for params in ({"agent": text, "input": {}}, {"agent": "talks", "input": {}, text: 1}):
                with pytest.raises(OrpheusError) as refused:
                    daemon.call("run", **params)
                assert refused.value.code in ("invalid-request", "not-found")
    said = daemon.log[log_from:]
    assert control_characters(said) == set()
    assert not any(line.startswith("2026-01-01") for line in said.splitlines())


@pytest.mark.parametrize("escaped", ["%0d%0aSet-Cookie:%20a=b", "%1b[2J", "%00", "%e2%80%ae", "%0a"])
def test_a_path_injects_nothing(daemon: Daemon, escaped: str) -> None:
    # fault 67
    log_from = len(daemon.log)
    with ExitStack() as stack:
        client = connect(daemon, stack)
        client.sendall(post(b'{"input":{}}', path=b"/v1/agents/%b/run" % escaped.encode()))
        head, _, body = first_answer(client).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"404")
    assert b"set-cookie" not in head.lower()
    assert control_characters(body.decode()) == set()
    assert control_characters(daemon.log[log_from:]) == set()


def test_pipelined_runs_are_answered_in_their_order(daemon: Daemon) -> None:
    # fault 70
    with Aftermath(daemon) as after, ExitStack() as stack:
        client = connect(daemon, stack)
        sessions = [f"piped-{number}" for number in range(20)]
        client.sendall(b"".join(post(
            json.dumps({"input": {}, "session_id": one}).encode(), path=b"/v1/agents/talks/run") for one in sessions))
        received = b""

        def answers() -> list[Any]:
            nonlocal received
            if received.count(b'"result":"done"}') < len(sessions):
                received += client.recv(65536)
                return []
            return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in received.split(b"HTTP/1.1 200")[1:]]

        told = eventually(answers, timeout_s=20)
        assert [one["session"]["id"] for one in told] == sessions
        assert after.run("talks").code == ""
