"""`POST /v1/agents/{agent}/run`: a request's path, headers and body become the parameters of `run`.

The answer is the daemon's own, byte for byte; what a caller may want to know without reading it is in headers.
Asked with `Accept: text/event-stream`, events.py sends the answer.
"""

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from orpheusd.doors.http.answers import send_answer
from orpheusd.doors.http.body import Bodies
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.events import send_events, while_there
from orpheusd.doors.http.head import HEAD
from orpheusd.doors.http.limits import Limits
from orpheusd.errors import OrpheusError
from orpheusd.operations import Operation

#: Headers that say a parameter, for callers that leave the body to others.
PARAM_HEADERS = {
    b"x-session-id": "session_id",
    b"x-session-affinity": "affinity",
    b"x-session-overlap": "overlap",
    b"x-session-require": "require",
    b"idempotency-key": "idempotency_key",
}
#: How the caller wants to be answered is HTTP's business: said by headers alone.
DETACH = b"prefer"
CANCEL_ON_DISCONNECT = b"x-orpheus-cancel-on-disconnect"
#: RFC 7240, 4.1.
RESPOND_ASYNC = "respond-async"
#: The rest of a value that is too long for a session id anyway is not passed on.
SESSION_HEADER_CHARACTERS = 129


class RunEndpoint:
    """The hot path: one decode of the body, one of the answer, no task, no log line."""

    def __init__(self, operation: Operation, client: ControlClient, bodies: Bodies, limits: Limits) -> None:
        self._client = client
        self._bodies = bodies
        self._limits = limits
        # The path says the agent; the others are read from the head.
        self._fields = frozenset(param.name for param in operation.params) - {
            "agent", "stream", "session_headers", "detach", "cancel_on_disconnect"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"]:
            raise OrpheusError("invalid-request", "run takes no query string, only headers and a body")
        fields = scope[HEAD].fields
        params = self._params(await self._bodies.read(scope, receive), fields)
        params["agent"] = scope["path_params"]["agent"]
        if _detaches(fields):
            params["detach"] = True
        if cancels := _cancels(fields):
            params["cancel_on_disconnect"] = True
        if wants_events(fields):
            params["stream"] = True
            await send_events(self._client, self._client.stream("run", params), receive, send, self._limits)
        elif "detach" in params:
            answer = await self._client.call("run", params)
            await send_answer(send, 202, answer, _place(answer))
        else:
            asking = self._client.call("run", params)
            answer = await (while_there(asking, receive) if cancels else asking)
            await send_answer(send, 200, answer, _told(answer))

    def _params(self, body: bytes, fields: dict[bytes, bytes]) -> dict[str, Any]:
        try:
            params = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise OrpheusError("invalid-request", f"the body is not JSON: {error}") from None
        if not isinstance(params, dict):
            raise OrpheusError("invalid-request", 'the body must be an object: {"input": ...}')
        if not params.keys() <= self._fields:
            raise OrpheusError(
                "invalid-request", f"the body may have the fields {', '.join(sorted(self._fields))} and no others")
        for header, name in PARAM_HEADERS.items():
            value = fields.get(header)
            if value is not None:
                text = value.decode("ascii")
                if params.setdefault(name, text) != text:
                    raise OrpheusError(
                        "invalid-request", f"{header.decode()} and the body's `{name}` differ; say one of them")
        if found := _session_headers(fields):
            params["session_headers"] = found
        return params


def wants_events(fields: dict[bytes, bytes]) -> bool:
    return b"text/event-stream" in fields.get(b"accept", b"")


def _session_headers(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Every header that an agent's callers may send a session id in; the daemon knows which of them this agent's do.

    The limits of a head bound them.
    """
    return {name.decode("latin-1"): value[:SESSION_HEADER_CHARACTERS].decode("ascii")
            for name, value in fields.items()
            if (name.startswith(b"x-") or name.endswith(b"-id"))
            and name not in PARAM_HEADERS and name != CANCEL_ON_DISCONNECT}


def _detaches(fields: dict[bytes, bytes]) -> bool:
    stated = fields.get(DETACH)
    if stated is None:
        return False
    preferences = (one.partition(";")[0].strip().lower() for one in stated.decode("ascii").split(","))
    return RESPOND_ASYNC in preferences


def _cancels(fields: dict[bytes, bytes]) -> bool:
    stated = fields.get(CANCEL_ON_DISCONNECT, b"false").lower()
    if stated not in (b"true", b"false"):
        raise OrpheusError("invalid-request", f"{CANCEL_ON_DISCONNECT.decode()} must be true or false")
    return stated == b"true"


def _place(answer: bytes) -> list[tuple[bytes, bytes]]:
    """Where the run can be asked for."""
    run_id: str = orjson.loads(answer)["request_id"]
    return [(b"location", f"/v1/runs/{run_id}".encode()), (b"preference-applied", RESPOND_ASYNC.encode())]


def _told(answer: bytes) -> list[tuple[bytes, bytes]]:
    """What headers say of the run. It stands before the result, which may be large and is passed on unread; within a
    string the quotes of its name would have backslashes."""
    facts = orjson.loads(answer[:answer.index(b',"result":')] + b"}")
    headers = [(b"x-orpheus-worker", facts["worker_id"].encode())]
    if (session := facts["session"]) is not None:
        headers.append((b"x-orpheus-context", session["context"].encode()))
    return headers
