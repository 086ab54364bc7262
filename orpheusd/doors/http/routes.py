"""The routes of the door, made from the operations table: one endpoint for each path, one handler for each method.

Each route has the access class of its row. What is of a class that the door guards is served to who sends the token;
of the rest, what changes the daemon only says which command does it. Parameters are only collected; the daemon checks
them, so that both doors refuse the same things in the same words.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from orpheusd.doors.http.answers import CLOSE, Refused, send_answer
from orpheusd.doors.http.bearer import Bearer, Handler
from orpheusd.doors.http.body import Bodies
from orpheusd.doors.http.changes import Deploy
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.events import send_events
from orpheusd.doors.http.head import HEAD
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.openapi import document
from orpheusd.doors.http.run import RunEndpoint, wants_events
from orpheusd.doors.http.waits import Waits
from orpheusd.errors import OrpheusError
from orpheusd.operations import KINDS, OPERATIONS, Access, Operation

#: More than any operation has parameters.
QUERY_FIELDS = 20

#: Whoever reaches the door may do this, unless it is guarded.
OPEN = (Access.READ, Access.RUN)

#: How a parameter is called in `orpheusctl --help`.
_METAVARS = {"agent": "NAME", "session": "ID", "run": "RUN", "upload": "PATH"}

#: A number as JSON writes it, in as many digits as anybody has for one.
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)

#: The longest that an operation waits before it answers.
WAIT_S = KINDS["wait"].maximum

_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class Served(NamedTuple):
    """One method of one path: who may use it, and what answers it."""

    access: Access
    handler: Handler


class Path:
    """One path. Invariant: answers the methods it has, and 405 with their list to all others. No handler but a POST's
    gets a body. `methods` are without HEAD, which is a GET."""

    def __init__(self, methods: Mapping[str, Served]) -> None:
        self.methods = dict(methods)
        self._handlers = {method: served.handler for method, served in methods.items()}
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]
        self._allow = ", ".join(sorted(self._handlers)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise Refused(405, "invalid-request", f"this path takes {self._allow.decode()} only",
                          [(b"allow", self._allow)])
        if scope[HEAD].has_body and scope["method"] != "POST":
            raise Refused(400, "invalid-request", "only POST takes a body")
        await handler(scope, receive, send)


def routes(client: ControlClient, limits: Limits, bearer: Bearer, waits: Waits) -> Router:
    """The ASGI application that finds the path of a request. Its endpoints raise what they cannot answer. Changes are
    served where they are guarded, and nowhere else. `waits` gets those that go on. Raises ValueError for a row that
    says no access."""
    bodies = Bodies(limits)
    described = bearer.before(Access.READ, _Document(orjson.dumps(document(bearer.guarded))))
    paths: dict[str, dict[str, Served]] = {"/openapi.json": {"GET": Served(Access.READ, described)}}
    for operation in OPERATIONS:
        if operation.http is not None:
            method, path = operation.http
            handler = _behind(operation, _handler(operation, client, bodies, limits, waits), bearer)
            paths.setdefault(path, {})[method] = Served(operation.access, handler)
    return Router([Route(path, Path(methods)) for path, methods in paths.items()],
                  redirect_slashes=False, default=_no_route)


def _behind(operation: Operation, handler: Handler, bearer: Bearer) -> Handler:
    """What stands before an operation. What is open or guarded is listed; there is no other way to be served."""
    if operation.access in OPEN or operation.access in bearer.guarded:
        return bearer.before(operation.access, handler)
    if operation.access is Access.ADMIN:
        return _Forbidden(operation)
    raise ValueError(f"{operation.name} is served over HTTP and does not say who may use it")


def _handler(
    operation: Operation, client: ControlClient, bodies: Bodies, limits: Limits, waits: Waits
) -> Handler:  # fmt: skip
    if operation.name == "run":
        return RunEndpoint(operation, client, bodies, limits)
    if operation.name == "deploy":
        return Deploy(client, limits)
    if operation.name == "metrics":
        return _Metrics(operation, client, bodies, limits)
    if operation.name == "run.retry":
        return _Retry(operation, client, bodies, limits)
    if any(param.kind == "wait" for param in operation.params):
        return _Wait(operation, client, bodies, limits, waits)
    return _Call(operation, client, bodies, limits)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise OrpheusError("not-found", "there is no such path; GET /openapi.json lists them all")


class _Call:
    """An operation that is one question and one answer."""

    def __init__(self, operation: Operation, client: ControlClient, bodies: Bodies, limits: Limits) -> None:
        self._operation = operation
        self._client = client
        self._bodies = bodies
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_answer(send, 200, await self._ask(scope, receive))

    async def _ask(self, scope: Scope, receive: Receive) -> bytes:
        return await self._call(await self._params(scope, receive))

    async def _params(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        params = query_params(self._operation, scope["query_string"])
        if not params.keys().isdisjoint(scope["path_params"]):
            raise OrpheusError("invalid-request", "the query string says a parameter that the path says already")
        params.update(scope["path_params"])
        if scope[HEAD].has_body:
            body = await self._bodies.read(scope, receive)
            if body not in (b"", b"{}"):
                raise OrpheusError("invalid-request", f"{self._operation.name} takes no body")
        return params

    async def _call(self, params: dict[str, Any]) -> bytes:
        deadline_s = self._deadline_s(params)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._client.call(self._operation.name, params)
        except TimeoutError:
            raise OrpheusError("unreachable", f"the daemon did not answer within {deadline_s:g} s") from None

    def _deadline_s(self, params: dict[str, Any]) -> float | None:
        """None for a change, whose deadline the daemon keeps."""
        if self._operation.access is Access.ADMIN:
            return None
        wait_s = params.get("wait")
        # A wait that is none is the daemon's to refuse; it has its time for that.
        return self._limits.read_deadline_s + (min(max(wait_s, 0), WAIT_S) if isinstance(wait_s, float) else 0)


class _Retry(_Call):
    """A run, of which the caller says in the same way how it wants to be answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = await self._params(scope, receive)
        if "stream" in params:
            raise OrpheusError("invalid-request", "a stream is asked for with `Accept: text/event-stream`")
        if wants_events(scope[HEAD].fields):
            stream = self._client.stream(self._operation.name, {**params, "stream": True})
            await send_events(self._client, stream, receive, send, self._limits)
        else:
            await send_answer(send, 200, await self._call(params))

    def _deadline_s(self, params: dict[str, Any]) -> float | None:
        """None: the daemon keeps the run's."""
        return None


class _Wait(_Call):
    """An operation that may wait before it answers. When the door needs the connection it answers with what there is:
    a wait is of so long at most."""

    def __init__(self, operation: Operation, client: ControlClient, bodies: Bodies, limits: Limits,
                 waits: Waits) -> None:
        super().__init__(operation, client, bodies, limits)
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = await self._params(scope, receive)
        if not params.get("wait"):
            await send_answer(send, 200, await self._call(params))
        elif (answer := await self._waits.answer(self._call(params), receive)) is not None:
            await send_answer(send, 200, answer)
        else:
            await send_answer(send, 200, await self._call({**params, "wait": 0}), [CLOSE])


class _Metrics(_Call):
    """The counts for Prometheus, as the text it wants."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text: str = orjson.loads(await self._ask(scope, receive))["text"]
        await send_answer(send, 200, text.encode(), media_type=_PROMETHEUS)


class _Forbidden:
    """An operation that is not served over HTTP."""

    def __init__(self, operation: Operation) -> None:
        words = [operation.cli, *(_METAVARS[param.kind] for param in operation.params if param.kind in _METAVARS)]
        self._message = (f"changes are not made over HTTP; use the command `orpheusctl {' '.join(words)}` "
                         "on the machine of the daemon")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise OrpheusError("permission-denied", self._message)


class _Document:
    """A JSON text that never changes."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_answer(send, 200, self._text)


def query_params(operation: Operation, query: bytes) -> dict[str, Any]:
    """The query string as parameters, each text made what its kind wants where it can be. Raises OrpheusError."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=QUERY_FIELDS,
                          errors="strict")
    except ValueError:
        raise OrpheusError("invalid-request", "the query string cannot be read") from None
    kinds = {param.name: param.kind for param in operation.params}
    params: dict[str, Any] = {}
    for name, text in pairs:
        if name in params:
            raise OrpheusError("invalid-request", "the query string says the same parameter twice")
        params[name] = _typed(kinds.get(name, "string"), text)
    return params


def _typed(kind: str, text: str) -> Any:
    # Text of no such form stays text, which the daemon then refuses with the rule for the parameter.
    if KINDS[kind].types == (int,) and text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind in ("moment", "seconds", "wait") and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text
