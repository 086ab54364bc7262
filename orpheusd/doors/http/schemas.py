"""What the answers look like, as JSON Schema: one schema for each operation that is served over HTTP.

Data for /openapi.json. Answers may gain fields; the ones named here stay.
"""

from typing import Any

from orpheusd.errors import CODES
from orpheusd.operations import CONTEXTS, KINDS, RUN_STATES

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
ANY: Schema = {}
SESSION_ID = KINDS["session"].json_schema
AGENT_NAME = KINDS["agent"].json_schema



def optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(**fields: Schema) -> Schema:
    """An object that has all of `fields`, and maybe others."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def counts(*names: str) -> Schema:
    return record(**dict.fromkeys(names, COUNT))


_SESSION = record(id=SESSION_ID, home=optional(STRING), turns=COUNT, running=COUNT, waiting=COUNT, saved=BOOLEAN,
                  idle_s=NUMBER)
#: What the monitor measures; null until it has looked at the process for the first time.
_PROCESS = {"pid": COUNT, "rss_bytes": optional(COUNT), "cpu_percent": optional(NUMBER), "children": optional(COUNT),
            "threads": optional(COUNT)}
_WORKER = record(id=STRING, version=COUNT, state=STRING, outdated=BOOLEAN, busy=ANY, sessions=COUNT, runs=COUNT,
                 uptime_s=NUMBER, **_PROCESS)
_MEMORY_LIMIT = {"enum": ["cgroup", "sampling"]}
_AGENT = {"name": AGENT_NAME, "version": COUNT, "state": STRING, "min": COUNT, "max": COUNT, "sessions": COUNT,
          "queue": COUNT, "runs": COUNT,
          "rolled_back": optional(record(version=COUNT, reason=STRING, at=NUMBER))}

_LOGGED = record(
    seq=COUNT, run_id=STRING, agent=STRING, session_id=optional(STRING), source=STRING, caller=STRING,
    detached=BOOLEAN, queued_at=NUMBER, input_bytes=COUNT, input_truncated=BOOLEAN, version=optional(COUNT),
    worker_id=optional(STRING), context=optional(STRING), turn=optional(COUNT), started_at=optional(NUMBER),
    state={"enum": list(RUN_STATES)}, code=optional(STRING), ended_at=optional(NUMBER), duration_ms=optional(NUMBER),
    result_bytes=COUNT, result_truncated=BOOLEAN, error_type=optional(STRING), error_message=optional(STRING),
    exit_cause=optional(STRING))

_RUN = record(
    request_id=STRING, result=ANY, duration_ms=NUMBER, worker_id=STRING,
    session=optional(record(id=SESSION_ID, context={"enum": list(CONTEXTS)}, turn=COUNT)))
#: What a run is answered with that is not waited for.
ACCEPTED = record(request_id=STRING, state={"const": "queued"}, agent=AGENT_NAME, session_id=optional(SESSION_ID))
#: OpenAPI before 3.2 has no place for the schema of a whole stream, so this is of one event.
EVENT: Schema = {
    "type": "object",
    "description": "each event of the stream; `data` is one line of JSON",
    "properties": {"id": STRING, "event": {"enum": ["accepted", "output", "log", "dropped", "result", "error"]},
                   "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["id", "event", "data"],
}

#: By the name of the operation. `metrics` is text and has none.
RESULTS: dict[str, Schema] = {
    "run": _RUN,
    "run.retry": _RUN,
    "run.cancel": record(run_id=STRING, cancelled=BOOLEAN),
    "run.list": record(runs=array(_LOGGED)),
    "run.show": {"allOf": [_LOGGED, record(
        traceback=optional(STRING), damaged=BOOLEAN, idempotency_key=optional(STRING), black_box=ANY, input=ANY,
        result=ANY)]},
    "run.why": record(
        run_id=STRING, state=STRING, worker_id=optional(STRING), session_id=optional(STRING),
        context=optional(STRING), affinity=STRING, overlap=STRING, waited_ms=NUMBER, open_workers=COUNT,
        home=optional(STRING), because=array(STRING)),
    "agent.list": record(agents=array(record(workers=COUNT, **_AGENT))),
    "agent.show": record(workers=array(_WORKER), handler=optional(STRING), isolation=STRING, deployed_at=ANY,
                         memory_limit=_MEMORY_LIMIT,
                         settings={"type": "object"}, **_AGENT),
    "agent.stats": record(
        workers=counts("current", "healthy", "busy", "min", "max"),
        queue=counts("depth", "processing", "max"),
        sessions=counts("count", "homeless", "max"),
        runs=counts("completed", "failed", "timed_out", "cancelled", "crashed", "rejected", "expired"),
        contexts=counts(*CONTEXTS),
        processes=array(record(worker_id=STRING, **_PROCESS))),
    "session.list": record(sessions=array(_SESSION), total=COUNT),
    "session.show": {"allOf": [_SESSION, record(agent=AGENT_NAME)]},
    "status": record(version=STRING, pid=COUNT, uptime_s=NUMBER, isolation=STRING, isolation_reason=optional(STRING),
                     isolation_weaknesses=array(STRING), memory_limit=_MEMORY_LIMIT, memory_limit_reason=STRING,
                     state_dir=STRING, runtime_dir=STRING, http=optional(STRING), agents=COUNT, workers=COUNT,
                     ready=BOOLEAN),
    "health": record(status={"enum": ["ok", "draining"]}, uptime_s=NUMBER, agents=COUNT, workers=COUNT),
}

ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {**STRING, "description": "what happened, why, and what to do next"},
        "code": {"enum": sorted(CODES), "description": "for scripts: the same at every door"},
        "request_id": {**STRING, "description": "the run, where there is one"},
        "duration_ms": NUMBER,
        "retry_after_s": NUMBER,
        "error_type": STRING,
        "traceback": STRING,
    },
    "required": ["error", "code"],
}
