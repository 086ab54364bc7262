"""`/openapi.json`: the routes as OpenAPI 3.1, made from the operations table.

It knows nothing of how they are served.
"""

from collections.abc import Collection
from typing import Any

from orpheusd import __version__
from orpheusd.doors.http.changes import ENV_HEADER
from orpheusd.doors.http.head import GZIP
from orpheusd.doors.http.run import CANCEL_ON_DISCONNECT, PARAM_HEADERS
from orpheusd.doors.http.schemas import ACCEPTED, ERROR, EVENT, RESULTS
from orpheusd.errors import CODES
from orpheusd.operations import CONTEXTS, KINDS, OPERATIONS, Access, Operation, Param

#: The codes a run can end with, beyond those that any operation can.
_RUN_CODES = ("conflict", "session-busy", "context-not-warm", "session-queue-full", "cancelled", "handler-failed",
              "unserialisable-result", "worker-crashed", "overloaded", "draining", "quarantined", "timed-out")
_CHANGE_CODES = ("conflict", "session-busy", "handler-failed", "draining", "timed-out")
_ALWAYS_CODES = ("invalid-request", "permission-denied", "internal", "overloaded", "unreachable")

#: Refusals that are HTTP's own and have no code of their own in the error table.
_HTTP_STATUSES = (400, 403, 405, 431, 505)
_BODY_STATUSES = (408, 413, 415)

#: The operations that are a run.
_RUNS = ("run", "run.retry")
#: Parameters of a run that other headers say.
_ELSEWHERE = ("stream", "session_headers", "detach", "cancel_on_disconnect")
_HEADERS = [
    {"name": "Prefer", "in": "header", "required": False, "schema": {"type": "string"},
     "description": "`respond-async`: answer as soon as the run is accepted for good (202)"},
    {"name": CANCEL_ON_DISCONNECT.decode().title(), "in": "header", "required": False,
     "schema": {"enum": ["true", "false"]}, "description": "`true`: cancel the run when its client disconnects"},
]

_ENV = {"name": ENV_HEADER.decode().title(), "in": "header", "required": False,
        "content": {"application/json": {"schema": KINDS["strings"].json_schema}},
        "description": "values for the variables that agent.yaml names without one"}

_REFUSAL = {"description": "refused or failed; `code` says why",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def document(guarded: Collection[Access] = ()) -> dict[str, Any]:
    """The whole document, ready to be encoded. `guarded` are the access classes that need the token; changes are
    served when they are among them."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if operation.http is not None:
            method, path = operation.http
            paths.setdefault(path, {})[method.lower()] = _operation(operation, path, guarded)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orpheus",
            "version": __version__,
            "description": "Keeps AI agents warm: the same session reaches the same process, with its memory.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Error": ERROR},
                       "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(operation: Operation, path: str, guarded: Collection[Access]) -> dict[str, Any]:
    is_change, is_guarded = operation.access is Access.ADMIN, operation.access in guarded
    in_path = [param for param in operation.params if f"{{{param.name}}}" in path]
    others = [param for param in operation.params if param not in in_path]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.name.partition(".")[0]],
        "parameters": [_parameter(param, "path", param.name) for param in in_path],
        "responses": _responses(operation, is_change, is_guarded),
    }
    if is_guarded:
        described["security"] = [{"token": []}]
    if operation.name == "deploy" and is_guarded:
        described["parameters"].append(_ENV)
        described["requestBody"] = {"required": True, "content": {GZIP.decode(): {
            "schema": {"type": "string", "format": "binary"}}}}
    elif is_change and not is_guarded:
        described["description"] = f"Not served over HTTP: use `orpheusctl {operation.cli}`."
    elif operation.name == "run":
        headers = {name: header.decode().title() for header, name in PARAM_HEADERS.items()}
        described["parameters"] += [
            _parameter(param, "header", headers[param.name]) for param in others if param.name in headers]
        described["parameters"] += _HEADERS
        described["requestBody"] = _body([param for param in others if param.name not in _ELSEWHERE])
    else:
        described["parameters"] += [
            _parameter(param, "query", param.name) for param in others
            if operation.name not in _RUNS or param.name not in _ELSEWHERE]
    return described


def _parameter(param: Param, place: str, name: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path" or (param.required and place == "query"),
            "description": param.help, "schema": _schema(param)}


def _schema(param: Param) -> dict[str, Any]:
    schema = dict(KINDS[param.kind].json_schema)
    if param.choices:
        schema["enum"] = list(param.choices)
    if param.default is not None:
        schema["default"] = param.default
    return schema


def _body(params: list[Param]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {param.name: {"description": param.help, **_schema(param)} for param in params},
        "required": [param.name for param in params if param.required],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(operation: Operation, is_change: bool, is_guarded: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if is_guarded or not is_change:
        responses["200"] = _success(operation)
    if operation.name == "run":
        responses["202"] = _accepted()
    codes = set(_ALWAYS_CODES)
    if operation.params:
        codes.add("not-found")
    if operation.name in _RUNS:
        codes.update(_RUN_CODES)
    if is_change and is_guarded:
        codes.update(_CHANGE_CODES)
    statuses = {CODES[code].http_status for code in codes} | set(_HTTP_STATUSES)
    if is_guarded:
        statuses.add(401)
    if operation.http is not None and operation.http[0] == "POST":
        statuses |= set(_BODY_STATUSES)
    responses.update({str(status): _REFUSAL for status in sorted(statuses)})
    return responses


def _accepted() -> dict[str, Any]:
    return {
        "description": "accepted for good, with `Prefer: respond-async`",
        "content": {"application/json": {"schema": ACCEPTED}},
        "headers": {
            "Location": {"description": "where the run can be asked for", "schema": {"type": "string"}},
            "Preference-Applied": {"description": "what was done", "schema": {"const": "respond-async"}},
        },
    }


def _success(operation: Operation) -> dict[str, Any]:
    if operation.name == "metrics":
        return {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    described: dict[str, Any] = {
        "description": operation.summary,
        "content": {"application/json": {"schema": RESULTS.get(operation.name, {"type": "object"})}},
    }
    if operation.name in _RUNS:
        described["content"]["text/event-stream"] = {"schema": EVENT}
    if operation.name == "run":
        described["headers"] = {
            "X-Orpheus-Worker": {"description": "the worker that ran it", "schema": {"type": "string"}},
            "X-Orpheus-Context": {"description": "what the session's memory was; only with a session",
                                  "schema": {"enum": list(CONTEXTS)}},
        }
    return described
