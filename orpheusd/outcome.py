"""How a run ended, on its way from the engine to whoever asked and to the run log."""

from typing import Any, NamedTuple

from orpheusd.core.effects import Why
from orpheusd.core.run import Run

#: What became of a run that had not begun when the daemon reloaded.
RELOADED = "cancelled while it was waiting: the daemon reloads, and nobody would have waited for it"
#: Neither the log nor a run that goes on tells why its worker was chosen.
NO_WHY = Why("", "", 0.0, 0, None)


class Outcome(NamedTuple):
    """`result` is the handler's, as JSON, when `code` is ""; else `error` has what the worker told of it.

    `cause` is how the worker died, when that ended the run, and `black_box` what was kept of it then: `cause`,
    `stack`, `peak_rss_bytes` and `log`. `retry_in_s` is when to ask again, 0 for the code's own number.
    """

    run_id: str
    state: str
    code: str
    message: str
    result: bytes
    error: dict[str, Any]
    worker_id: str | None
    session_id: str | None
    context: str | None
    turn: int
    duration_ms: float
    cause: str
    why: Why
    retry_in_s: float
    black_box: dict[str, Any]


def unawaited(run: Run, now: float) -> Outcome:
    """What the caller is told whose run is not over when the daemon reloads. One that was started goes on, and its end
    is still to come; one that was not is cancelled."""
    begun = run.worker is not None
    text = (f"the daemon is reloading and run {run.id} goes on: its end is told by `orpheusctl attach {run.id}` and "
            f"GET /v1/runs/{run.id}?wait=30" if begun else f"{RELOADED}; ask again")
    return Outcome(
        run.id, "started" if begun else "cancelled", "draining", text, b"", {},
        run.worker.id if run.worker is not None else None, run.session, run.context,
        run.entry.turns if run.entry is not None else 0,
        round((now - (run.started_at if begun else run.queued_at)) * 1000, 3), "", NO_WHY, 0.0, {})
