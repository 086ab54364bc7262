"""One connection to the daemon: finds its socket, checks whose it is, sends requests, reads answers and events.

It knows the control protocol and nothing of any operation. Reading never starts before the server's uid has
been checked, and nothing is sent before either.
"""

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from orpheusctl import reach
from orpheusd.errors import OrpheusError
from orpheusd.wire import control
from orpheusd.wire.frames import FrameTooLong, LineBuffer

#: The kernel queues a connection while the daemon is busy accepting others; a daemon that turns needs milliseconds.
CONNECT_DEADLINE_S = 5
#: A request is at most 16 MiB; a daemon that does not read for this long is stuck.
SEND_DEADLINE_S = 30
#: Restarting an agent may take its start-up deadline (30 s) and two graces; nothing else takes as long.
ANSWER_DEADLINE_S = 120

_READ_BYTES = 256 * 1024


class Event(NamedTuple):
    """A notification that belongs to request `id`."""

    id: int | str | None
    name: str
    data: Any


class Answer(NamedTuple):
    """The end of request `id`: a result, or an error."""

    id: int | str | None
    result: Any
    error: OrpheusError | None

    def value(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class Client:
    """A connection. Invariant: frames are sent whole or the connection is given up; no request id is used twice."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket = sock
        self._buffer = LineBuffer(control.FRAME_LIMIT_BYTES)
        self._messages: Iterator[bytes] = iter(())
        self._last_id = 0
        self.path = path

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, params: dict[str, Any], within_s: float = ANSWER_DEADLINE_S) -> Any:
        """The result of one request. Raises the daemon's error, or `unreachable` when it does not answer."""
        return self.stream(method, params, lambda event: None, within_s)

    def stream(
        self, method: str, params: dict[str, Any], on_event: Callable[[Event], None], silence_s: float | None
    ) -> Any:
        """The result of one request, its events handed to `on_event` as they come.

        Gives up when `silence_s` seconds bring nothing; None leaves it to the daemon to keep its own deadlines.
        """
        id = self.send(method, params)
        while True:
            message = self.receive(silence_s)
            if message is None:
                raise OrpheusError(
                    "unreachable", f"the daemon has not answered {method} for {silence_s:.0f} s; it may be overloaded "
                                   f"or stuck: see its log")
            if isinstance(message, Event):
                on_event(message)
            elif message.id == id:
                return message.value()

    def send(self, method: str, params: dict[str, Any]) -> int:
        """Sends a request and returns its id, without waiting for the answer."""
        self._last_id += 1
        frame = encode(control.request(self._last_id, method, params)) + b"\n"
        if len(frame) > control.FRAME_LIMIT_BYTES:
            raise OrpheusError("too-large", f"the request is {len(frame)} bytes of JSON; the daemon reads at most "
                                            f"{control.FRAME_LIMIT_BYTES}")
        self._socket.settimeout(SEND_DEADLINE_S)
        try:
            self._socket.sendall(frame)
        except TimeoutError:
            raise OrpheusError("unreachable", f"the daemon has not read the request for {SEND_DEADLINE_S} s") from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # why it hung up may be waiting to be read
        return self._last_id

    def receive(self, within_s: float | None, wake_fd: int = -1) -> Event | Answer | None:
        """The next message, or None when `within_s` seconds have passed or `wake_fd` became readable."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while True:
            for line in self._messages:
                message = _read(line)
                if message is not None:
                    return message
            if not self._wait(deadline, wake_fd):
                return None
            self._messages = iter(self._read_lines())

    def _wait(self, deadline: float | None, wake_fd: int) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if wake_fd >= 0:
            poll.register(wake_fd, select.POLLIN)
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = poll.poll(None if left_s is None else left_s * 1000)
        return bool(ready) and all(fd != wake_fd for fd, _ in ready)

    def _read_lines(self) -> list[bytes]:
        try:
            data = self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise OrpheusError("unreachable", "the daemon went away before it answered: it stopped, or refused this "
                                              "connection; its log says which")
        try:
            return self._buffer.feed(data)
        except FrameTooLong as error:
            raise OrpheusError("internal", f"the daemon's answer cannot be read: {error}") from None


def connect(stated: str | None) -> Client:
    """A connection to the daemon at `stated`, or at the first of the usual places where one listens.

    Raises OrpheusError: `unreachable` with what was tried, or `permission-denied` when the server is not to be
    trusted with a request.
    """
    tried: list[reach.Attempt] = []
    for path in reach.candidates(stated):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # With a send timeout the kernel waits for room in a full backlog; a non-blocking connect would fail at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_DEADLINE_S, 0))
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            tried.append(reach.Attempt(path, error))
            continue
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if not reach.trusted(path, uid, os.geteuid()):
            sock.close()
            raise reach.distrusted(path, uid)
        return Client(sock, path)
    raise reach.unreachable(tried)


def encode(value: Any) -> bytes:
    """Compact JSON. Raises OrpheusError(invalid-request) for what JSON or UTF-8 cannot carry."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise OrpheusError("invalid-request", "the request holds text that is not valid Unicode (half a surrogate "
                                              "pair, or bytes that are not UTF-8)") from None
    except ValueError:
        raise OrpheusError("invalid-request", "the request holds a number that JSON cannot carry (NaN, infinite, "
                                              "or too long)") from None


def _read(line: bytes) -> Event | Answer | None:
    """The message in a line; None for one of a kind that a later daemon may have added."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise OrpheusError("internal", f"the daemon's answer cannot be read: {cause}") from None
    if not isinstance(value, dict):
        raise OrpheusError("internal", "the daemon's answer is not a JSON-RPC object")
    if "method" in value:
        params = value.get("params") or {}
        return Event(params.get("id"), str(params.get("event", "")), params.get("data"))
    if isinstance(value.get("error"), dict):
        error = control.read_error(value["error"])
        if value.get("id") is None:
            raise error
        return Answer(value.get("id"), None, error)
    return Answer(value.get("id"), value.get("result"), None)
