"""The short way: a POST that arrived whole and in the plainest form is read and answered without h11.

What is read here is a strict part of what h11 reads, and is read as h11 reads it. Whatever is unusual, be it legal or
not, is left to h11. This file owns no socket and knows nothing of what requests ask for.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from starlette.types import Message, Scope

from orpheusd.doors.http.body import WHOLE

Headers = list[tuple[bytes, bytes]]
Address = tuple[str, int] | None

_REQUEST_LINE = re.compile(rb"POST (/[!-~]*) HTTP/1\.1")
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEXT = b"\t\r\n" + bytes(range(0x20, 0x7F))
#: More digits than a body that arrived in one read can need.
_LENGTH = re.compile(rb"\d{1,9}")

#: What changes how a message is framed, or what comes after it, is h11's.
_OTHERWISE = frozenset((b"transfer-encoding", b"upgrade", b"expect", b"trailer", b"te"))
#: These must notice that their client leaves; here nobody listens before the answer is sent.
_STREAM = b"text/event-stream"
_WATCHED = b"x-orpheus-cancel-on-disconnect"

#: A longer body is not worth a copy to go out in one write with its head.
JOIN_BYTES = 64 * 1024

_VALUE = re.compile(rb"[!-~](?:[ -~]*[!-~])?")


class PlainRequest(NamedTuple):
    """Header names are in lower case, as in ASGI. `target` is a path with its query string."""

    target: bytes
    headers: Headers
    body: bytes

    def scope(self, client: Address, server: Address) -> Scope:
        raw_path, _, query_string = self.target.partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http", "asgi": {"spec_version": "2.1", "version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": unquote(path) if "%" in path else path, "raw_path": raw_path,
            "query_string": query_string, "root_path": "", "headers": self.headers, "client": client,
            "server": server, "state": {}, "extensions": {}, WHOLE: True,
        }  # fmt: skip


def read_plain(data: bytes) -> PlainRequest | None:
    """The request in `data` when it is exactly one and plain, else None."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or data[:5] != b"POST ":
        return None
    head = data[:end]
    first, *lines = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    # Neither a control character nor a line that ends in another way.
    if request_line is None or head.translate(None, _TEXT) or head.count(b"\r") + head.count(b"\n") != 2 * len(lines):
        return None
    headers = _headers(lines)
    if headers is None or headers[1] != len(data) - end - 4:
        return None
    return PlainRequest(request_line[1], headers[0], data[end + 4:])


class Exchange:
    """One plain request's way through an ASGI application, and the one answer it gets.

    Invariant: `answer` is empty or the pieces of a whole answer; `hang_up` says that it announces the end of the
    connection.
    """

    def __init__(self, request: PlainRequest, common: bytes) -> None:
        """`common`: the header lines of every answer and the empty line after them."""
        self.answer: tuple[bytes, ...] = ()
        self.hang_up = False
        self._body: bytes | None = request.body
        self._common = common
        self._start: Message | None = None

    async def receive(self) -> Message:
        if self._body is None:
            raise RuntimeError("a plain request has one piece, and nobody listens for its client to leave")
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if self._start is None:
            self._start = message
        elif self.answer or message.get("more_body"):
            raise RuntimeError("a plain request has one answer of one piece")
        else:
            head, body = self._head(self._start["status"], self._start["headers"]), message["body"]
            self.answer = (head + body,) if len(body) <= JOIN_BYTES else (head, body)

    def _head(self, status: int, headers: Any) -> bytes:
        lines = [b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            if _VALUE.fullmatch(value) is None:
                raise ValueError(f"the header {name!r} cannot have the value {value!r}")
            if name == b"connection":
                self.hang_up = True
            lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(self._common)
        return b"".join(lines)


def _headers(lines: list[bytes]) -> tuple[Headers, int] | None:
    """The headers in `lines` and the length of the body, or None when one of them is not plain."""
    headers: Headers = []
    length: int | None = None
    hosts = 0
    for line in lines:
        name, _, value = line.partition(b":")
        if not name or name.translate(None, _TOKEN) or len(name) == len(line):
            return None
        name = name.lower()
        value = value.strip(b" \t")
        if name == b"content-length":
            if length is not None or _LENGTH.fullmatch(value) is None:
                return None
            length = int(value)
        elif name == b"host":
            hosts += 1
        elif name in _OTHERWISE or (name == b"connection" and value.lower() != b"keep-alive") \
                or (name == b"accept" and _STREAM in value) or name == _WATCHED:
            return None
        headers.append((name, value))
    return (headers, length) if length is not None and hosts == 1 else None
