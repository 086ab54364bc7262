"""Every path of the HTTP door x every method x every way of being refused, from the routes as the door serves them.

It makes requests that would be carried out but for the one thing that is wrong with them, and says how each must be
answered. It sends nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from starlette.routing import Route

from orpheusd.doors.http.bearer import Bearer
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.routes import Path, routes
from orpheusd.doors.http.streams import Room
from orpheusd.doors.http.waits import Waits
from orpheusd.operations import Access

#: RFC 9110 and its kin, and two that nobody has.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PROPFIND",
           "get", "BREW")
UNKNOWN = "/v1/no-such-path"
TOKEN = "w" * 43
RUN = b'{"input":{"leave":"an effect"}}'


#: The access classes that need the token.
Guarded = frozenset[Access]
#: Each that a daemon's settings can make, under the settings' names.
SETTINGS: dict[tuple[str, ...], Guarded] = {
    (): frozenset(),
    ("--http-admin",): frozenset({Access.ADMIN}),
    ("--http-require-token",): frozenset({Access.READ, Access.RUN}),
    ("--http-require-token", "--http-admin"): frozenset(Access),
}


class Cell(NamedTuple):
    """One method of one path. `access` is None where the path does not have it, or is none."""

    path: str
    method: str
    access: Access | None

    @property
    def missing(self) -> int | None:
        """How it is answered when nothing is wrong with the request but that this is not there."""
        if self.access is not None:
            return None
        return 404 if self.path == UNKNOWN else 405


class Refusal(NamedTuple):
    """One thing that is wrong. `headers` are instead of a good request's, None for none. `status` says what a cell
    answers, None where the request is not wrong; `body` says whether every method gets one."""

    headers: Mapping[str, str | None]
    status: Callable[[Cell, Guarded], int | None]
    body: bool = False


def _always(status: int) -> Callable[[Cell, Guarded], int]:
    """Refused before anybody looks where it goes."""
    return lambda _cell, _guarded: status


def _content_type(cell: Cell, _guarded: Guarded) -> int | None:
    return 415 if cell.method == "POST" else cell.missing or 400


def _bundle(cell: Cell, guarded: Guarded) -> int | None:
    return None if cell.path == "/v1/deploy" else _content_type(cell, guarded)


def _token(status: int) -> Callable[[Cell, Guarded], int | None]:
    """What is neither guarded nor a change is open (security.md, 1); where changes are not served, no token lets one
    through."""
    def told(cell: Cell, guarded: Guarded) -> int | None:
        return cell.missing or (status if cell.access in guarded else 403 if cell.access is Access.ADMIN else None)
    return told


#: The whole table.
REFUSALS: dict[str, Refusal] = {
    "bad Host": Refusal({"Host": "evil.example"}, _always(400)),
    "rebound Host": Refusal({"Host": "localhost.evil.example:7777"}, _always(400)),
    "no Host": Refusal({"Host": None}, _always(400)),
    "foreign Origin": Refusal({"Origin": "https://evil.example"}, _always(403)),
    "other port's Origin": Refusal({"Origin": "http://localhost:3000"}, _always(403)),
    "null Origin": Refusal({"Origin": "null"}, _always(403)),
    "cross-site": Refusal({"Sec-Fetch-Site": "cross-site"}, _always(403)),
    "same-site": Refusal({"Sec-Fetch-Site": "same-site"}, _always(403)),
    "text": Refusal({"Content-Type": "text/plain"}, _content_type, body=True),
    "form": Refusal({"Content-Type": "application/x-www-form-urlencoded"}, _content_type, body=True),
    "multipart": Refusal({"Content-Type": "multipart/form-data; boundary=x"}, _content_type, body=True),
    "no content type": Refusal({"Content-Type": None}, _content_type, body=True),
    "a bundle elsewhere": Refusal({"Content-Type": "application/gzip"}, _bundle, body=True),
    "no token": Refusal({"Authorization": None}, _token(401)),
    "another scheme": Refusal({"Authorization": "Basic dzp3"}, _token(401)),
    "no token after Bearer": Refusal({"Authorization": "Bearer"}, _token(401)),
    "short token": Refusal({"Authorization": f"Bearer {TOKEN[:-1]}"}, _token(403)),
    "long token": Refusal({"Authorization": f"Bearer {TOKEN}w"}, _token(403)),
    "wrong token": Refusal({"Authorization": f"Bearer {TOKEN.upper()}"}, _token(403)),
}


def served(guarded: Guarded) -> dict[str, dict[str, Access]]:
    """The paths of the door, and who may use which of their methods. Raises AssertionError for a route that does not
    say so."""
    async def made() -> dict[str, dict[str, Access]]:
        limits = Limits()
        client = ControlClient(Room(limits.stream_queue_bytes, limits.streams_bytes), on_lost=lambda: None, orders={})
        return access_of(routes(client, limits, Bearer(b"", guarded), Waits()).routes)
    return asyncio.run(made())


def access_of(found: list[object]) -> dict[str, dict[str, Access]]:
    said = {}
    for route in found:
        assert isinstance(route, Route) and isinstance(route.endpoint, Path), f"{route} says no access"
        said[route.path] = {method: one.access for method, one in route.endpoint.methods.items()}
        assert said[route.path], route
        assert all(isinstance(access, Access) for access in said[route.path].values()), route
    return said


def cells(guarded: Guarded) -> Iterator[Cell]:
    for path, methods in {**served(guarded), UNKNOWN: {}}.items():
        for method in METHODS:
            yield Cell(path, method, methods.get("GET" if method == "HEAD" else method))


def request(cell: Cell, path: str, body: bytes, refusal: Refusal | None) -> bytes:
    """What is sent to `path`, which is the cell's with names in it. `body` is what a POST there has."""
    lines: dict[str, str | None] = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}"}
    if cell.method != "POST":
        body = b""
    elif cell.path == "/v1/deploy":
        lines["Content-Type"] = "application/gzip"
    elif body:
        lines["Content-Type"] = "application/json"
    if refusal is not None:
        lines.update(refusal.headers)
        body = body or (RUN if refusal.body else b"")
    if body:
        lines["Content-Length"] = str(len(body))
    said = [f"{name}: {value}" for name, value in lines.items() if value is not None]
    return "\r\n".join([f"{cell.method} {path} HTTP/1.1", *said]).encode() + b"\r\n\r\n" + body
