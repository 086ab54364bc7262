"""The control protocol: JSON-RPC 2.0, one object a line, many requests in flight on one connection.

An error carries `data.code`, a code of `orpheusd.errors`. A stream is a request whose answer is preceded by
notifications named `<method>.event` that carry the request's id. A client that speaks for many, as a front door does,
says with the notification `gone` that whoever asked a request has left; its answer may still come. What the daemon
wants of a front door it says with the notifications `drain` and `stop`, after all that it has said before. This file
makes and reads the objects; it owns no socket and no codec.
"""

from typing import Any, NamedTuple

from orpheusd.errors import CODES, OrpheusError

#: One request or answer; inputs and results are capped at 8 MiB, bundles come in pieces.
FRAME_LIMIT_BYTES = 16 * 1024 * 1024

#: The client's one notification: `{"id": …}` of a request whose caller has left.
GONE = "gone"

#: What a front door is told: to accept nobody, and to leave when everybody it had accepted was answered; and to leave
#: within its grace.
DRAIN, STOP = "drain", "stop"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
SERVER_ERROR = -32000


class Request(NamedTuple):
    """A call: `id` is the caller's own, echoed in the answer; None means that no answer is wanted."""

    id: str | int | None
    method: str
    params: dict[str, Any]


class MalformedRequest(Exception):
    """The peer sent something that is not a JSON-RPC request. `number` is the protocol's error number."""

    def __init__(self, number: int, message: str, id: str | int | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.id = id


def read_request(value: object) -> Request:
    """The request in a decoded frame. Raises MalformedRequest."""
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise MalformedRequest(INVALID_REQUEST, 'a request is one JSON object with "jsonrpc": "2.0"')
    id = value.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise MalformedRequest(INVALID_REQUEST, "`id` must be a string or an integer")
    method = value.get("method")
    if not isinstance(method, str):
        raise MalformedRequest(INVALID_REQUEST, "`method` must be a string", id)
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise MalformedRequest(INVALID_PARAMS, "`params` must be an object", id)
    return Request(id, method, params)


def request(id: str | int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def gone(id: str | int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": GONE, "params": {"id": id}}


def order(name: str) -> dict[str, Any]:
    """DRAIN or STOP."""
    return {"jsonrpc": "2.0", "method": name, "params": {}}


def answer(id: str | int | None, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": result}


def event(id: str | int | None, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A notification that belongs to the stream which request `id` of `method` opened."""
    return {"jsonrpc": "2.0", "method": f"{method}.event", "params": {"id": id, **params}}


def refusal(id: str | int | None, error: OrpheusError, number: int = SERVER_ERROR) -> dict[str, Any]:
    """The answer that carries an error."""
    data = {"code": error.code, **error.details}
    if error.retry_after_s is not None:
        data["retry_after_s"] = error.retry_after_s
    return {"jsonrpc": "2.0", "id": id, "error": {"code": number, "message": error.message, "data": data}}


def read_error(value: dict[str, Any]) -> OrpheusError:
    """The error in a refusal, as the caller's side sees it; an unknown code becomes `internal`."""
    data = dict(value.get("data") or {})
    code = data.pop("code", "invalid-request" if value.get("code") != SERVER_ERROR else "internal")
    return OrpheusError(code if code in CODES else "internal", str(value.get("message", "")), data)
