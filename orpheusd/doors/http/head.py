"""The guard: what a request's line and headers must be before anything else looks at it.

Browsers are kept out (Host, Origin, fetch metadata, content type), ambiguous requests are refused, sizes are
counted. It reads no body and knows no route.
"""

import re
from typing import NamedTuple

from starlette.types import Scope

from orpheusd.doors.http.answers import Refused
from orpheusd.doors.http.limits import Limits

#: A loopback literal cannot be the victim of DNS rebinding, a name other than localhost can.
_HOST = re.compile(rb"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?", re.IGNORECASE)

#: Where a browser says that another site's page sent the request.
_FOREIGN_FETCH = (b"cross-site", b"same-site")

#: Headers this door acts on: said twice with two meanings, the request is refused.
_SAID_ONCE = frozenset((
    b"host", b"origin", b"sec-fetch-site", b"content-type", b"content-length", b"transfer-encoding",
    b"x-session-id", b"x-session-affinity", b"x-session-overlap", b"x-session-require", b"mcp-session-id",
    b"idempotency-key", b"authorization", b"x-orpheus-env", b"x-orpheus-cancel-on-disconnect"))

#: Neither can be sent by another site's page without being asked for first, unlike text and forms.
JSON, GZIP = b"application/json", b"application/gzip"
#: The one path whose body is not JSON.
BUNDLE_PATH = b"/v1/deploy"

#: The place of the `Head` in an ASGI scope.
HEAD = "orpheus.head"


class Head(NamedTuple):
    """Headers by lower-case name. `body_bytes` is what Content-Length says, None for a chunked body."""

    fields: dict[bytes, bytes]
    body_bytes: int | None

    @property
    def has_body(self) -> bool:
        return self.body_bytes != 0


def read_head(scope: Scope, limits: Limits) -> Head:
    """The head of a request this door may answer. Raises Refused."""
    if scope["http_version"] != "1.1":
        raise Refused(505, "invalid-request", "this door speaks HTTP/1.1 only")
    if scope["raw_path"][:1] != b"/":
        raise Refused(400, "invalid-request", "the request target must be a path that starts with /")
    fields = _fields(scope, limits)
    _refuse_foreign(fields)
    if b"websocket" in fields.get(b"upgrade", b"").lower():
        raise Refused(400, "invalid-request", "this door has no WebSockets; ask for a stream with "
                      "Accept: text/event-stream")
    body_bytes = _body_bytes(fields)
    if body_bytes != 0 and scope["method"] == "POST":
        _refuse_body(scope["raw_path"], fields)
    return Head(fields, body_bytes)


def _fields(scope: Scope, limits: Limits) -> dict[bytes, bytes]:
    headers = scope["headers"]
    if len(headers) > limits.header_count:
        raise Refused(431, "too-large", f"a request may have at most {limits.header_count} headers")
    fields: dict[bytes, bytes] = {}
    size_bytes = len(scope["raw_path"]) + len(scope["query_string"])
    for name, value in headers:
        size_bytes += len(name) + len(value) + 4
        if not value.isascii():
            raise Refused(400, "invalid-request", "headers must be ASCII")
        if name in fields and name in _SAID_ONCE and fields[name] != value:
            raise Refused(400, "invalid-request", f"the header {name.decode()} was sent twice with different values")
        fields[name] = value if name not in fields or name in _SAID_ONCE else fields[name] + b"," + value
    if size_bytes > limits.header_bytes:
        raise Refused(431, "too-large", f"request line and headers may be {limits.header_bytes} bytes together")
    return fields


def _refuse_foreign(fields: dict[bytes, bytes]) -> None:
    host = fields.get(b"host", b"")
    if not _HOST.fullmatch(host):
        raise Refused(400, "invalid-request", "the Host header must name this machine: localhost, 127.0.0.1 or [::1]; "
                      "a proxy in front of this door must set it")
    origin = fields.get(b"origin")
    if origin is not None and origin.lower() != b"http://" + host.lower():
        raise Refused(403, "permission-denied", "this door does not answer the pages of web sites (Origin)")
    if fields.get(b"sec-fetch-site", b"").lower() in _FOREIGN_FETCH:
        raise Refused(403, "permission-denied", "this door does not answer the pages of web sites (Sec-Fetch-Site)")


def _body_bytes(fields: dict[bytes, bytes]) -> int | None:
    length = fields.get(b"content-length")
    if b"transfer-encoding" in fields:
        if length is not None:
            raise Refused(400, "invalid-request", "Content-Length and Transfer-Encoding exclude each other")
        return None
    return int(length) if length is not None else 0  # h11 let only digits through


def media_type_of(fields: dict[bytes, bytes]) -> bytes:
    return fields.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _refuse_body(path: bytes, fields: dict[bytes, bytes]) -> None:
    """The bodies of other methods have no reader, whatever they are (routes.py)."""
    media_type = media_type_of(fields)
    if media_type != JSON and (path, media_type) != (BUNDLE_PATH, GZIP):
        raise Refused(415, "invalid-request", "the body must be JSON, with Content-Type: application/json")
