"""How this door answers: one JSON body for results, one for errors, whatever went wrong where.

It knows nothing of routes or of the control protocol.
"""

from collections.abc import Iterable
from typing import Any

import orjson
from starlette.types import Send

from orpheusd.errors import OrpheusError

Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"
#: The last answer of its connection.
CLOSE = (b"connection", b"close")


class Refused(OrpheusError):
    """A request that is wrong as HTTP: its status and headers are HTTP's own, its code that of the error table."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(code, message)
        self.status = status
        self.headers = tuple(headers)


class ClientGone(Exception):
    """The client closed its connection before it had sent its request."""


async def send_answer(send: Send, status: int, body: bytes, headers: Headers = (), media_type: bytes = JSON) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: OrpheusError, hang_up: bool = False) -> None:
    """`hang_up` says that the request's body was not read, so that no other request can follow."""
    headers: list[tuple[bytes, bytes]] = []
    status = error.outcome.http_status
    if isinstance(error, Refused):
        status = error.status
        headers.extend(error.headers)
    if (retry_after_s := error.retry_after_s) is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    if hang_up:
        headers.append(CLOSE)
    await send_answer(send, status, error_body(error), headers)


def error_body(error: OrpheusError) -> bytes:
    """JSON of one line: the details of the error, `error` (its message) and `code`."""
    body: dict[str, Any] = {**error.details, "error": error.message, "code": error.code}
    return orjson.dumps(body)
