"""`orpheusctl attach`: waits for the end of a run that is under way, and then prints what `run` would have printed.

It waits as long as the run takes, asking again each time; the run does not know of it.
"""

from typing import Any

from orpheusctl import client
from orpheusctl.ask import request
from orpheusctl.output import Output
from orpheusctl.parser import Call
from orpheusctl.run import Quiet
from orpheusd.errors import CODES, OrpheusError

#: How long one question waits: well below what the daemon allows, so that a daemon that is stuck is noticed soon.
WAIT_S = 30


def execute(call: Call, output: Output) -> int:
    operation, params = request(call)
    with client.connect(call.arguments.socket) as daemon:
        row = daemon.call(operation.name, params)
        while row["ended_at"] is None:
            row = daemon.call(operation.name, {**params, "wait": WAIT_S})
    listener = Quiet(output)
    try:
        answer = _answer(row)
    except OrpheusError as error:
        listener.failed(error)
        return error.outcome.exit_code
    listener.finished(answer)
    return 0


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """What `run` would have been answered. Raises the run's error."""
    session = None
    if row["session_id"] is not None:
        session = {"id": row["session_id"], "context": row["context"], "turn": row["turn"]}
    facts = {"request_id": row["run_id"], "duration_ms": row["duration_ms"], "worker_id": row["worker_id"],
             "session": session}  # fmt: skip
    code = row["code"]
    if code:
        told = {"error_type": row["error_type"], "traceback": row["traceback"], "state": row["state"]}
        raise OrpheusError(code if code in CODES else "internal", row["error_message"] or row["state"],
                           {**facts, **{name: value for name, value in told.items() if value is not None}})
    if row["damaged"] or row["result_truncated"]:
        raise OrpheusError("internal", f"run {row['run_id']} has completed, and its result ({row['result_bytes']} "
                                       "bytes) was not kept whole in the run log", facts)
    return {**facts, "result": row["result"]}
