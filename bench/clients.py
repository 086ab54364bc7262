"""The callers: one blocking client a protocol, and a closed loop over many connections.

The same client code speaks to Orpheus and to its baseline, so that its own cost is in both figures.
"""

import select
import socket
import time
from pathlib import Path

READ_BYTES = 256 * 1024
#: No single answer takes longer, or the measurement is over.
TIMEOUT_S = 30.0


class LineClient:
    """One connection to a Unix socket on which a line is answered by a line."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(str(path))

    def call(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        answer = self._socket.recv(READ_BYTES)
        while not answer.endswith(b"\n"):
            answer += _received(self._socket)
        return answer

    def close(self) -> None:
        self._socket.close()


class HttpClient:
    """One kept connection to 127.0.0.1, made anew when the server ends it; each answer must have a Content-Length."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connected()

    def call(self, request: bytes) -> bytes:
        """The body of the answer. Raises AssertionError when it is not a 200."""
        self._socket.sendall(request)
        answer = _received(self._socket)
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += _received(self._socket)
        head = answer[:end].lower()
        assert head.startswith(b"http/1.1 200"), answer
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(answer) < end + 4 + length:
            answer += _received(self._socket)
        if b"\r\nconnection: close" in head:  # a server may end a connection after so many requests
            self.close()
            self._socket = self._connected()
        return answer[end + 4:]

    def close(self) -> None:
        self._socket.close()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def http_request(port: int, path: str, body: bytes, session: str) -> bytes:
    return (f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
            f"X-Session-ID: {session}\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body


def closed_loop(path: Path, requests: list[bytes], seconds: float) -> float:
    """Answers a second with one connection for each of `requests`, each sent again as soon as it is answered."""
    poll = select.epoll()
    sockets: dict[int, tuple[socket.socket, bytes]] = {}
    try:
        for request in requests:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            sockets[connection.fileno()] = connection, request
            poll.register(connection, select.EPOLLIN)
            connection.sendall(request)
        answered, begun = 0, time.perf_counter()
        end = begun + seconds
        while time.perf_counter() < end:
            for fd, _ in poll.poll(TIMEOUT_S):
                connection, request = sockets[fd]
                data = _received(connection)
                assert b'"error":' not in data, data
                if data.endswith(b"\n"):
                    answered += 1
                    connection.sendall(request)
        return answered / (time.perf_counter() - begun)
    finally:
        poll.close()
        for connection, _ in sockets.values():
            connection.close()


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(READ_BYTES)
    if not data:
        raise AssertionError("the peer closed the connection in the middle of a measurement")
    return data
