"""HTTP/1.1 and no other protocol: what Hypercorn speaks on one connection, with its ways out of HTTP/1.1 closed.

Unasked, Hypercorn switches a cleartext connection to HTTP/2 (the `PRI *` preface, `Upgrade: h2c`) and to WebSocket.
Here such a request stays an HTTP/1.1 request, which the guard then judges. This file owns no socket.
"""

import time
from typing import Any
from wsgiref.handlers import format_date_time

import h11
import orjson
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from orpheusd.doors.http.answers import JSON, error_body
from orpheusd.doors.http.limits import Limits
from orpheusd.errors import OrpheusError

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
]

_NO_ROOM = OrpheusError("overloaded", "the door is full, and this body has kept others waiting; try again later")
_NO_ROOM_BODY = error_body(_NO_ROOM)
_NO_ROOM_HEAD = (
    b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\nretry-after: %d\r\nconnection: close\r\n"
    % (_NO_ROOM.outcome.http_status, JSON, len(_NO_ROOM_BODY), _NO_ROOM.retry_after_s or 0))


class DoorConfig(Config):
    """Hypercorn's settings for this door. Every answer, also one that h11 makes, carries `SECURITY_HEADERS`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.h11_max_incomplete_size = limits.header_bytes
        self.errorlog = None
        self.accesslog = None
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        self._renew()
        return self._headers

    def response_lines(self) -> bytes:
        """The same headers as they are written, and the empty line after them."""
        self._renew()
        return self._lines

    def no_room(self) -> bytes:
        """The whole answer to a request whose body had not come when its connection was given to a newcomer."""
        return _NO_ROOM_HEAD + self.response_lines() + _NO_ROOM_BODY

    def _renew(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._headers = [(b"date", format_date_time(second).encode("ascii")), *SECURITY_HEADERS]
            self._lines = b"".join(b"%b: %b\r\n" % header for header in self._headers) + b"\r\n"


class PlainHTTP(H11Protocol):
    """One connection's requests, one after the other. Invariant: `stream` is an HTTP/1.1 stream or None; `_head` is
    the head of an answer of which nothing was sent yet, or empty.
    """

    _head = b""

    @property
    def is_between(self) -> bool:
        """Whether the next byte to come is the first of a request."""
        return self.stream is None and self.connection.their_state is h11.IDLE and not self.connection.trailing_data[0]

    @property
    def is_receiving(self) -> bool:
        """Whether the end of a request's body is still to come, and nothing was answered yet."""
        return self.connection.their_state is h11.SEND_BODY and self.connection.our_state is h11.SEND_RESPONSE

    async def _check_protocol(self, event: Any) -> None:
        """No request changes the protocol."""

    async def _create_stream(self, request: Any) -> None:
        self.stream = HTTPStream(self.app, self.config, self.context, self.task_group, self.ssl, self.client,
                                 self.server, self.stream_send, STREAM_ID)
        # `keep_alive_requests` is not counted up: h11 has no state that grows from one request to the next.
        await self.stream.handle(Request(
            stream_id=STREAM_ID, headers=list(request.headers), http_version=request.http_version.decode(),
            method=request.method.decode("ascii"), raw_path=request.target, state=self.connection_state))

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data  # goes out with what follows it: one write, one packet
        else:
            head, self._head = self._head, b""
            await self.send(RawData(data=head + data))

    async def _send_error_response(self, status_code: int) -> None:
        body = _MALFORMED[431] if status_code == 431 else _MALFORMED[400]
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                   (b"connection", b"close")]
        await self.stream_send(Response(stream_id=STREAM_ID, headers=headers, status_code=status_code))
        await self.stream_send(Body(stream_id=STREAM_ID, data=body))
        await self.stream_send(EndBody(stream_id=STREAM_ID))


_MALFORMED = {
    400: orjson.dumps({"error": "this is not a well-formed HTTP/1.1 request", "code": "invalid-request"}),
    431: orjson.dumps({"error": "the request line and headers are too long", "code": "too-large"}),
}
