"""How a run ended, on its way from the engine to whoever asked and to the run log."""

from typing import Any, NamedTuple

from orpheusd.core.effects import Why


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
