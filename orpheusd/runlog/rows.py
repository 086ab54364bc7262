"""What goes into the run log and what comes out of it. Times are wall-clock seconds, for people; order is `seq`.

Nothing here knows SQL, files or threads.
"""

from typing import NamedTuple


class Queued(NamedTuple):
    """A run was accepted. The first thing the log hears of it.

    `detached`: nobody waits for the answer, so payloads are kept whole; `options` is what a later daemon needs to
    queue it again, in the daemon's own words. `input_bytes` is the size of the whole input when `input` is not.
    `idempotency_key` is the caller's name for this request, `fingerprint` (SHA-256 in hex) says what was asked under
    it; whoever asks again is answered from the log, so payloads are kept whole then too. `announced`: the caller hears
    of the run before it is over, once this is written. It is not stored.
    """

    run_id: str
    agent: str
    session_id: str | None
    source: str
    caller: str
    queued_at: float
    input: bytes | None
    input_bytes: int | None = None
    detached: bool = False
    options: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    announced: bool = False

    @property
    def whole(self) -> bool:
        """Whether its payloads are kept whatever is said of capturing, and its start is waited for."""
        return self.detached or self.idempotency_key is not None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for this to be written."""
        return self.whole or self.announced


class Started(NamedTuple):
    """A worker was handed the run. `context` and `turn` are None and 0 without a session."""

    run_id: str
    version: int
    worker_id: str
    context: str | None
    turn: int
    started_at: float


class Ended(NamedTuple):
    """The run reached its terminal state. `duration_us` is monotonic time, never the difference of wall times.

    `context` and `turn` replace those of `Started` when given. `whole` as of its `Queued`. `black_box` is JSON: what
    was known of the worker when it died.
    """

    run_id: str
    state: str
    code: str
    ended_at: float
    duration_us: int
    result: bytes | None = None
    result_bytes: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    exit_cause: str | None = None
    context: str | None = None
    turn: int | None = None
    whole: bool = False
    black_box: str | None = None


Change = Queued | Started | Ended


class Run(NamedTuple):
    """One row of a listing: everything but the payloads. A truncated payload is one that is not stored whole."""

    seq: int
    run_id: str
    agent: str
    session_id: str | None
    source: str
    caller: str
    detached: bool
    queued_at: float
    input_bytes: int
    input_truncated: bool
    version: int | None
    worker_id: str | None
    context: str | None
    turn: int | None
    started_at: float | None
    state: str
    code: str | None
    ended_at: float | None
    duration_us: int | None
    result_bytes: int
    result_truncated: bool
    error_type: str | None
    error_message: str | None
    exit_cause: str | None


class RunDetail(NamedTuple):
    """One run with its payloads. `damaged`: the stored bytes are not the ones that were written."""

    run: Run
    options: str | None
    traceback: str | None
    input: bytes | None
    result: bytes | None
    damaged: bool
    idempotency_key: str | None = None
    fingerprint: str | None = None
    black_box: str | None = None


def payload_bytes(change: Change) -> int:
    """What a change weighs while it waits."""
    if isinstance(change, Queued):
        return len(change.input) if change.input is not None else 0
    if isinstance(change, Ended):
        texts = len(change.traceback or "") + len(change.black_box or "")
        return (len(change.result) if change.result is not None else 0) + texts
    return 0
