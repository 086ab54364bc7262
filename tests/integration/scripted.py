"""A control socket that answers from a script, and orpheusctl as real processes that talk to it.

What a daemon would decide is written down by each test; what is between the two processes is real.
"""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from orpheusd.errors import OrpheusError
from orpheusd.wire import control
from orpheusd.wire.frames import LineBuffer
from tests.daemon import environment
from tests.eventually import eventually

#: Beyond anything a command waits for by itself here.
TIMEOUT_S = 20
Params = dict[str, Any]


class Exchange:
    """One request at the scripted daemon: what may be said before it is answered."""

    def __init__(self, connection: socket.socket, id: int, method: str) -> None:
        self.connection = connection
        self.id = id
        self.method = method

    def say(self, event: str, data: Any) -> None:
        params = {"event": event, "data": data, "seq": 1}
        self.send(control.event(self.id, self.method, params))

    def accepted(self) -> None:
        self.say("accepted", {"request_id": "r-7"})

    def send(self, value: Params) -> None:
        self.connection.sendall(json.dumps(value).encode() + b"\n")

    def hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)


Script = Callable[[Params, Exchange], Any]


class ScriptedDaemon:
    """A control socket that answers from `script`. Invariant: after the `with` its threads and sockets are gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: dict[str, Script] = {}
        self.asked: list[tuple[str, Params]] = []
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._start(self._accept)

    def answers(self, method: str, value: Any) -> None:
        self.script[method] = lambda params, exchange: value

    def refuses(self, method: str, code: str, message: str, **details: Any) -> None:
        def refuse(params: Params, exchange: Exchange) -> None:
            raise OrpheusError(code, message, details)

        self.script[method] = refuse

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for sock in (self._listener, *self._connections):
            sock.close()

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        buffer = LineBuffer(control.FRAME_LIMIT_BYTES)
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for line in buffer.feed(data):
                    self._start(self._answer, connection, control.read_request(json.loads(line)))

    def _answer(self, connection: socket.socket, request: control.Request) -> None:
        assert isinstance(request.id, int)
        self.asked.append((request.method, request.params))
        exchange = Exchange(connection, request.id, request.method)
        with contextlib.suppress(OSError):
            try:
                result = self.script[request.method](request.params, exchange)
                exchange.send(control.answer(request.id, result))
            except OrpheusError as error:
                exchange.send(control.refusal(request.id, error))


def argv(door: ScriptedDaemon, *args: str) -> list[str]:
    return [sys.executable, "-m", "orpheusctl", "--socket", str(door.path), *args]


def ctl(door: ScriptedDaemon, *args: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(door, *args), input=input, capture_output=True, text=True, timeout=TIMEOUT_S,
                          check=False, env={**environment(), **env})


@contextlib.contextmanager
def started(door: ScriptedDaemon, *args: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    with subprocess.Popen(argv(door, *args), text=True, env=environment(), **settings) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, when the command has nothing left to do but wait."""
    stat = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", TIMEOUT_S, "the command to wait")
    process.send_signal(signal.SIGINT)


def on_terminal(door: ScriptedDaemon, *args: str, **env: str) -> str:
    """What somebody sees who types the command: stdout and stderr on one terminal of 100 columns."""
    master, slave = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "100", **env}
    process = subprocess.Popen(argv(door, *args), stdin=slave, stdout=slave, stderr=slave,
                               env={**environment(), **settings})
    os.close(slave)
    seen = bytearray()
    try:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while data := os.read(master, 65536):
                seen += data
        process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return seen.decode()


def run_answer(result: Any, context: str = "warm") -> Params:
    return {"request_id": "r-7", "result": result, "duration_ms": 1.5, "worker_id": "w-1-2",
            "session": {"id": "user-123", "context": context, "turn": 2}}


def log_row(text: str) -> Params:
    return {"time": 1_700_000_000.5, "worker_id": "w-1", "run_id": "r-7", "session_id": None, "stream": "stderr",
            "text": text}
