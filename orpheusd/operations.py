"""The operations table: everything a caller may ask through a door, each with the access it needs.

One row makes the control method, the HTTP route, the line in `orpheusctl --help`, the section of
`docs/operations.md` and the entry in `/openapi.json`. The function of a row is the method of
`orpheusd.service.Service` with the row's name, dots turned to underscores. This file is data and the check
of parameters; it knows nothing of how an operation is carried out.
"""

import difflib
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from orpheusd.errors import OrpheusError

#: The rule for session ids at every door (docs/sessions.md).
SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}", re.ASCII)
#: HTTP headers that may bear a session id, in lower case: no standard header but Content-ID has such a name.
SESSION_HEADER = re.compile(r"x-[a-z0-9!#$%&'*+.^_`|~-]{1,61}|[a-z0-9!#$%&'*+.^_`|~-]{1,60}-id", re.ASCII)
#: The rule for agent names: a DNS label that starts with a letter or digit.
AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}", re.ASCII)
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
UPLOAD_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

#: A moment as RFC 3339 writes it: with an offset, so that it is one moment everywhere.
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

#: The largest whole number that every reader of JSON has exactly (RFC 8259, 6); a database and a list take it too.
COUNT_LIMIT = 2**53 - 1
#: Seconds since 1970 that a moment may be; far beyond what RFC 3339 can write.
MOMENT_LIMIT = 2**40

#: The most a run's input may be as JSON, and a result; see docs/operations.md.
INPUT_LIMIT_BYTES = 8 * 1024 * 1024
RESULT_LIMIT_BYTES = 8 * 1024 * 1024

CONTEXTS = ("new", "warm", "spilled", "restored", "lost")
#: The most rows one listing returns: they are made on the event loop, some microseconds each.
ROWS_LIMIT = 1000
#: The most lines of a log that are read at once: about as many as an agent's files hold.
LINES_LIMIT = 100_000

RUN_STATES = (
    "queued", "started", "completed", "failed", "timed-out", "cancelled", "crashed", "expired", "rejected")
SOURCES = ("ctl", "http")


class Access(Enum):
    """What a caller must hold to use an operation. Each includes the ones before it."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"


class Param(NamedTuple):
    """One parameter. `kind` is a key of `KINDS`; `choices`, where given, is the whole list of values."""

    name: str
    kind: str
    help: str
    required: bool = True
    default: Any = None
    choices: tuple[str, ...] = ()


class Operation(NamedTuple):
    """A row of the table. `http` is (method, path), `cli` the words after `orpheusctl`, "" for neither."""

    name: str
    access: Access
    summary: str
    params: tuple[Param, ...] = ()
    http: tuple[str, str] | None = None
    cli: str = ""
    stream: bool = False


class Kind(NamedTuple):
    """A type of parameter: what JSON calls it, the rule beyond the type, and how to say the rule.

    `pattern` is for its texts, `minimum` and `maximum` for its numbers.
    """

    types: tuple[type, ...]
    json_schema: dict[str, Any]
    says: str
    pattern: re.Pattern[str] | None = None
    minimum: float | None = None
    maximum: float = math.nextafter(math.inf, 0.0)


KINDS: dict[str, Kind] = {
    "agent": Kind((str,), {"type": "string", "pattern": f"^{AGENT_NAME.pattern}$"},
                  "an agent name: 1 to 63 of a-z, 0-9 and -, starting with a letter or digit", AGENT_NAME),
    "session": Kind((str,), {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"},
                    "a session id: 1 to 128 characters of A-Z a-z 0-9 _ . : @ - starting with a letter or digit",
                    SESSION_ID),
    "run": Kind((str,), {"type": "string", "pattern": f"^{RUN_ID.pattern}$"}, "a run id", RUN_ID),
    "upload": Kind((str,), {"type": "string", "pattern": f"^{UPLOAD_ID.pattern}$"}, "an upload id", UPLOAD_ID),
    "string": Kind((str,), {"type": "string"}, "a string"),
    "piece": Kind((str,), {"type": "string", "contentEncoding": "base64"}, "bytes in base64"),
    "boolean": Kind((bool,), {"type": "boolean"}, "true or false"),
    "count": Kind((int,), {"type": "integer", "minimum": 0, "maximum": COUNT_LIMIT},
                  "a whole number from 0 to 2^53 - 1", minimum=0, maximum=COUNT_LIMIT),
    "rows": Kind((int,), {"type": "integer", "minimum": 0, "maximum": ROWS_LIMIT},
                 f"a whole number from 0 to {ROWS_LIMIT}", minimum=0, maximum=ROWS_LIMIT),
    "lines": Kind((int,), {"type": "integer", "minimum": 0, "maximum": LINES_LIMIT},
                  f"a whole number from 0 to {LINES_LIMIT}", minimum=0, maximum=LINES_LIMIT),
    "seconds": Kind((int, float), {"type": "number", "exclusiveMinimum": 0}, "a number of seconds above 0",
                    minimum=math.ulp(0.0)),
    "wait": Kind((int, float), {"type": "number", "minimum": 0, "maximum": 60}, "a number of seconds from 0 to 60",
                 minimum=0, maximum=60),
    "key": Kind((str,), {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
                "1 to 255 printable ASCII characters", IDEMPOTENCY_KEY),
    "moment": Kind((int, float, str), {"anyOf": [{"type": "number", "minimum": 0, "maximum": MOMENT_LIMIT},
                                                 {"type": "string", "format": "date-time"}]},
                   "a moment: RFC 3339 (`2026-01-31T12:00:00Z`), or seconds since 1970", MOMENT, minimum=0,
                   maximum=MOMENT_LIMIT),
    "strings": Kind((dict,), {"type": "object", "additionalProperties": {"type": "string"}},
                    "an object of strings"),
    "json": Kind((object,), {}, "any JSON value"),
}

_AGENT = Param("agent", "agent", "name of the agent")
_SESSION = Param("session_id", "session", "session id")
_RUN = Param("run_id", "run", "run id")
_UPLOAD = Param("upload_id", "upload", "an upload begun with bundle.put")
_LIMIT = Param("limit", "rows", f"at most this many rows, up to {ROWS_LIMIT}", required=False, default=100)

OPERATIONS: tuple[Operation, ...] = (
    Operation("run", Access.RUN, "execute an agent's handler once", (
        _AGENT,
        Param("input", "json", "what the handler gets as input_data"),
        _SESSION._replace(required=False, help="send the run to the worker that holds this session's memory"),
        Param("affinity", "string", "what to do when that worker is busy; the agent's own setting unless given",
              required=False, choices=("soft", "strict")),
        Param("overlap", "string", "what to do when the session already has a run; the agent's own unless given",
              required=False, choices=("allow", "queue", "reject", "interrupt")),
        Param("require", "string", "refuse to run unless the session's memory is there",
              required=False, choices=("warm",)),
        Param("timeout_s", "seconds", "stop the run after this long; the agent's own timeout unless given",
              required=False),
        Param("session_headers", "strings", "headers that may bear the session id, by lower-case name; the agent's "
              "`session.header` and `mcp-session-id` count", required=False, default={}),
        Param("stream", "boolean", "send output and log lines as events while the run goes on",
              required=False, default=False),
        Param("detach", "boolean", "answer as soon as the run is accepted for good; it is executed even if the daemon "
              "is killed before", required=False, default=False),
        Param("idempotency_key", "key", "of requests with the same key, for 24 hours, one is executed and all get its "
              "answer", required=False),
        Param("cancel_on_disconnect", "boolean", "cancel the run when its caller leaves before the answer",
              required=False, default=False),
    ), ("POST", "/v1/agents/{agent}/run"), "run", stream=True),
    Operation("run.cancel", Access.RUN, "stop a run that is waiting or going on", (_RUN,),
              ("POST", "/v1/runs/{run_id}/cancel"), "cancel"),
    Operation("run.list", Access.READ, "list runs from the run log, newest first", (
        _AGENT._replace(required=False, help="only runs of this agent"),
        Param("state", "string", "only runs in this state", required=False, choices=RUN_STATES),
        _SESSION._replace(name="session", required=False, help="only runs of this session"),
        Param("source", "string", "only runs that came through this door", required=False, choices=SOURCES),
        Param("since", "moment", "only runs that were accepted then or later", required=False),
        Param("until", "moment", "only runs that were accepted before then", required=False),
        Param("before", "count", "only runs before the one with this `seq`: the next page", required=False),
        _LIMIT,
    ), ("GET", "/v1/execlog"), "runs"),
    Operation("run.retry", Access.RUN, "run again what an ended run was given, as a new run", (
        _RUN,
        Param("stream", "boolean", "send output and log lines as events while the run goes on",
              required=False, default=False),
    ), ("POST", "/v1/runs/{run_id}/retry"), "retry", stream=True),
    Operation("run.show", Access.READ, "show one run with its input, result and error", (
        _RUN, Param("wait", "wait", "first wait so long for the run's end", required=False, default=0),
    ), ("GET", "/v1/runs/{run_id}"), "show"),
    Operation("run.why", Access.READ, "tell why that worker executed a run", (_RUN,),
              ("GET", "/v1/runs/{run_id}/why"), "why"),
    Operation("agent.list", Access.READ, "list the agents", (), ("GET", "/v1/agents"), "list"),
    Operation("agent.show", Access.READ, "show one agent and its workers", (_AGENT,),
              ("GET", "/v1/agents/{agent}"), ""),
    Operation("agent.stats", Access.READ, "show an agent's counts: workers, queue, sessions, runs", (_AGENT,),
              ("GET", "/v1/agents/{agent}/stats"), "stats"),
    Operation("session.list", Access.READ, "list an agent's sessions, most recently used first",
              (_AGENT, _LIMIT), ("GET", "/v1/agents/{agent}/sessions"), "sessions"),
    Operation("session.show", Access.READ, "show one session", (_AGENT, _SESSION),
              ("GET", "/v1/agents/{agent}/sessions/{session_id}"), "session show"),
    Operation("session.end", Access.ADMIN, "end a session: its next run is new", (_AGENT, _SESSION),
              ("DELETE", "/v1/agents/{agent}/sessions/{session_id}"), "session end"),
    Operation("bundle.put", Access.ADMIN, "send a piece of a bundle (a tar.gz of an agent's folder); it is "
              "kept until it is deployed, at most as long as the connection that began it", (
        _UPLOAD._replace(required=False, help="the upload this piece continues; without it a new one begins"),
        Param("data", "piece", "the piece, at most 4 MiB decoded; the next may be sent when this one is answered"),
    )),
    Operation("bundle.drop", Access.ADMIN, "forget an upload that is not deployed yet", (_UPLOAD,)),
    Operation("bundle.inspect", Access.ADMIN, "read the agent.yaml of an uploaded bundle", (_UPLOAD,)),
    Operation("deploy", Access.ADMIN, "deploy an uploaded bundle as the agent's next version", (
        _UPLOAD,
        Param("env", "strings", "values for the variables agent.yaml names without one", required=False,
              default={}),
        Param("stream", "boolean", "send each step as an event", required=False, default=False),
    ), ("POST", "/v1/deploy"), "deploy", stream=True),
    Operation("undeploy", Access.ADMIN, "stop an agent and forget its versions; its workspace stays", (
        _AGENT, Param("purge", "boolean", "delete its workspace and logs too", required=False, default=False),
    ), ("DELETE", "/v1/agents/{agent}"), "undeploy"),
    Operation("restart", Access.ADMIN, "replace an agent's workers by new ones", (_AGENT,),
              ("POST", "/v1/agents/{agent}/restart"), "restart"),
    Operation("rollback", Access.ADMIN, "make an older version of an agent the current one again", (
        _AGENT, Param("version", "count", "the version to go back to; the newest that is older than the current one "
                      "unless given", required=False),
    ), ("POST", "/v1/agents/{agent}/rollback"), "rollback"),
    Operation("logs", Access.READ, "read what an agent's workers printed", (
        _AGENT,
        _LIMIT._replace(kind="lines", help=f"at most this many of the latest lines, up to {LINES_LIMIT}"),
        _RUN._replace(required=False, help="only lines of this run"),
        _SESSION._replace(required=False, help="only lines of this session"),
        Param("stream", "boolean", "go on sending lines as events", required=False, default=False),
    ), None, "logs", stream=True),
    Operation("workspace.info", Access.READ, "show where an agent's workspace is and what it holds", (_AGENT,),
              None, "workspace info"),
    Operation("workspace.clean", Access.ADMIN, "delete all in an agent's workspace but its sessions' state", (_AGENT,),
              ("DELETE", "/v1/agents/{agent}/workspace"), "workspace clean"),
    Operation("status", Access.READ, "show the daemon: version, uptime, isolation, agents", (),
              ("GET", "/v1/status"), "status"),
    Operation("doctor", Access.READ, "check what the daemon's box can enforce, and what to do where it cannot", (),
              None, "doctor"),
    Operation("reload", Access.ADMIN, "execute the daemon anew, as it is on disk now, while callers wait", (),
              ("POST", "/v1/reload"), "reload"),
    Operation("health", Access.READ, "answer whether the engine turns", (), ("GET", "/v1/health"), ""),
    Operation("metrics", Access.READ, "counts for Prometheus, as text", (), ("GET", "/metrics"), ""),
)

BY_NAME: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}

#: Of each operation: its parameters by name, the defaults of the optional ones, the names of the others.
_FORMS: dict[str, tuple[dict[str, Param], dict[str, Any], frozenset[str]]] = {
    operation.name: (
        {param.name: param for param in operation.params},
        {param.name: param.default for param in operation.params if not param.required},
        frozenset(param.name for param in operation.params if param.required))
    for operation in OPERATIONS
}


def check_params(operation: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with defaults filled in. Raises OrpheusError(invalid-request) that names what is wrong."""
    params, defaults, required = _FORMS[operation.name]
    checked = defaults.copy()
    for name, value in given.items():
        param = params.get(name)
        if param is None:
            raise _unknown(operation, name)
        if value is not None or param.kind == "json":
            _check_value(operation, param, value)
            checked[name] = value
    if not required <= checked.keys():
        missing = next(param for param in operation.params if param.required and param.name not in checked)
        raise _wrong(operation, f"needs `{missing.name}` ({KINDS[missing.kind].says})")
    return checked


def _check_value(operation: Operation, param: Param, value: Any) -> None:
    kind = KINDS[param.kind]
    right = (
        (type(value) in kind.types or kind.types == (object,))
        and (kind.pattern is None or not isinstance(value, str) or kind.pattern.fullmatch(value) is not None)
        and (kind.minimum is None or isinstance(value, str) or kind.minimum <= value <= kind.maximum)
        and (param.kind != "strings" or all(isinstance(item, str) for item in value.values()))
    )
    if not right:
        raise _wrong(operation, f"`{param.name}` must be {kind.says}")
    if param.choices and value not in param.choices:
        raise _wrong(operation, f"`{param.name}` must be one of {', '.join(param.choices)}")


def _unknown(operation: Operation, name: object) -> OrpheusError:
    near = difflib.get_close_matches(str(name), [param.name for param in operation.params], n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return _wrong(operation, f"has no parameter `{str(name)[:40]}`{hint}")


def _wrong(operation: Operation, what: str) -> OrpheusError:
    return OrpheusError("invalid-request", f"{operation.name} {what}")
