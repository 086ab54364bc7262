"""A real HTTP door as a child process, and the other end of its control connection, scripted by a test.

`Peer` speaks the control protocol as the daemon does, with answers a test puts in; it knows nothing of agents.
"""

import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from orpheusd.errors import OrpheusError
from orpheusd.operations import Access
from orpheusd.process.sandbox import Isolation, door_argv
from orpheusd.wire.control import answer, event, order, refusal
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
EXIT_TIMEOUT_S = 15.0

PLAIN = Isolation("none", "", None)

Script = Callable[["Peer", Any, dict[str, Any]], None]


def never(_peer: "Peer", _id: Any, _params: dict[str, Any]) -> None:
    """The script of a run that goes on."""


def run_result(**changes: Any) -> dict[str, Any]:
    return {"request_id": "r-1", "duration_ms": 1.5, "worker_id": "w-1-1", "session": None, "result": None, **changes}


def echo(peer: "Peer", id: Any, params: dict[str, Any]) -> None:
    session = params.get("session_id")
    peer.answer(id, run_result(
        result=params["input"], session=session and {"id": session, "context": "warm", "turn": 2}))


class Peer:
    """Reads every request of a door in a thread of its own and lets the script of its method answer it.

    Invariant: `requests` holds all of them in order; a method without a script is never answered.
    """

    def __init__(self) -> None:
        self.socket, self.door_end = socket.socketpair()
        self.requests: list[dict[str, Any]] = []
        self.scripts: dict[str, Script] = {
            "run": echo, "health": lambda peer, call, _params: peer.answer(call, {"status": "ok"})}
        self._thread = threading.Thread(target=self._read, name="control peer")
        self._thread.start()

    def on(self, method: str, result: Any) -> None:
        """From now on every `method` gets this result, or this error."""
        def script(peer: Peer, id: Any, _params: dict[str, Any]) -> None:
            if isinstance(result, OrpheusError):
                peer.refuse(id, result)
            else:
                peer.answer(id, result)
        self.scripts[method] = script

    def answer(self, id: Any, result: Any) -> None:
        self.send(answer(id, result))

    def refuse(self, id: Any, error: OrpheusError) -> None:
        self.send(refusal(id, error))

    def event(self, id: Any, name: str, data: Any, seq: int) -> None:
        self.send(event(id, "run", {"event": name, "data": data, "seq": seq}))

    def send(self, frame: dict[str, Any]) -> None:
        # Compact, as the daemon's own encoder writes.
        self.send_line(json.dumps(frame, separators=(",", ":")).encode())

    def send_line(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def awaited(self, method: str, number: int = 1) -> list[dict[str, Any]]:
        """The first `number` requests of `method`, as soon as they are there."""
        def arrived() -> list[dict[str, Any]]:
            found = [one for one in list(self.requests) if one["method"] == method]
            return found[:number] if len(found) >= number else []
        return eventually(arrived, what=f"{number} requests of {method}")

    def close(self) -> None:
        with suppress(OSError):  # the door may have closed it first
            self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(EXIT_TIMEOUT_S)
        self.socket.close()
        self.door_end.close()

    def _read(self) -> None:
        with self.socket.makefile("rb") as lines, suppress(ConnectionError):
            for line in lines:
                request = json.loads(line)
                self.requests.append(request)
                if script := self.scripts.get(request["method"]):
                    script(self, request["id"], request["params"])


class DoorProcess:
    """One door with its peer. Invariant: after `close` neither is left."""

    def __init__(self, log: Path, token: str | None = None, guard: Collection[Access] = (),
                 isolation: Isolation = PLAIN, told: str | None = None, **limits: float) -> None:
        """`token` is for what is of an access class in `guard`. `told` is an order that was said before the door is
        started."""
        self.peer = Peer()
        if told is not None:
            self.peer.send(order(told))
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024),
                          socket.create_server(("::1", 0), family=socket.AF_INET6)]
        self.port, self.port6 = (one.getsockname()[1] for one in self.listeners)
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        fds = [one.fileno() for one in (*self.listeners, self.peer.door_end)]
        *listening, control = fds
        argv = [sys.executable, "-m", "orpheusd.doors.http", "--control-fd", str(control)]
        argv += [word for fd in listening for word in ("--listen-fd", str(fd))]
        argv += [word for name, value in limits.items() for word in ("--limit", f"{name}={value}")]
        argv += [word for access in guard for word in ("--guard", access.value)]
        if token is not None:
            digest, end = os.pipe()
            os.write(end, hashlib.sha256(token.encode()).digest())
            os.close(end)
            fds.append(digest)
            argv += ["--token-fd", str(digest)]
        with log.open("ab") as stderr, door_argv(isolation, argv, "ORPHEUS_DOOR_OF=test").opened() as (argv, more):
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, pass_fds=(*fds, *more),
                stdin=subprocess.DEVNULL, stderr=stderr)
        self.peer.door_end.close()
        if token is not None:
            os.close(digest)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def connect(self, timeout_s: float = 10.0, receive_bytes: int | None = None) -> socket.socket:
        """A raw connection. `receive_bytes` makes it one that cannot hold much for a slow reader."""
        client = socket.socket()
        client.settimeout(timeout_s)
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        return client

    @contextmanager
    def clients(self, number: int, receive_bytes: int | None = None) -> Iterator[list[socket.socket]]:
        """This many raw connections."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connect(receive_bytes=receive_bytes)) for _ in range(number)]

    def exchange(self, request: bytes) -> bytes:
        """The first answer to these bytes; empty when the door closed the connection without one."""
        with self.connect() as client:
            client.sendall(request)
            return first_answer(client)

    def until_up(self) -> None:
        """Returns when the door has answered somebody: what its clients do from now on it sees as it happens."""
        assert self.exchange(b"GET /up HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 404 ")

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def exit_code(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        self.peer.close()
        try:
            self.process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            for listener in self.listeners:
                listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def first_answer(client: socket.socket) -> bytes:
    """One answer that says its length, or what came until the connection closed."""
    received = b""
    while piece := client.recv(65536):
        received += piece
        head, separator, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if separator and length and len(body) >= int(length[1]):
            break
    return received


def until_closed(client: socket.socket) -> bytes:
    """Everything until the door closes the connection. Raises TimeoutError when it does not."""
    received = b""
    with suppress(ConnectionError):
        while piece := client.recv(65536):
            received += piece
    return received


def until_quiet(client: socket.socket) -> bytes:
    """Everything until nothing more comes for as long as `client` waits."""
    received = b""
    with suppress(TimeoutError):
        while piece := client.recv(65536):
            received += piece
    return received


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/agents/a/run") -> bytes:
    """A raw run request with these header lines."""
    lines = [b"POST %b HTTP/1.1" % path, b"Host: localhost", b"Content-Type: application/json",
             b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
