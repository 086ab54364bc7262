"""A run: one execution of a handler. It is executed at most once and ends in exactly one terminal state."""

from enum import Enum
from typing import TYPE_CHECKING

from orpheusd.core.effects import Why
from orpheusd.core.lifecycle import move

if TYPE_CHECKING:
    from orpheusd.core.sessions import Session
    from orpheusd.core.worker import Worker


class RunState(Enum):
    """Where a run is. The last seven are terminal."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is Python code on the hot path

    QUEUED = "queued"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    EXPIRED = "expired"
    REJECTED = "rejected"


TRANSITIONS: dict[RunState, tuple[RunState, ...]] = {
    RunState.QUEUED: (RunState.STARTED, RunState.CANCELLED, RunState.EXPIRED, RunState.REJECTED),
    # back to QUEUED only with proof that the worker never read the run
    RunState.STARTED: (
        RunState.QUEUED, RunState.COMPLETED, RunState.FAILED, RunState.TIMED_OUT, RunState.CANCELLED,
        RunState.CRASHED),
    RunState.COMPLETED: (),
    RunState.FAILED: (),
    RunState.TIMED_OUT: (),
    RunState.CANCELLED: (),
    RunState.CRASHED: (),
    RunState.EXPIRED: (),
    RunState.REJECTED: (),
}


class Run:
    """A run that is not over. Once it is, the supervisor forgets it.

    Invariant: QUEUED and waiting in exactly one lane, or STARTED and on exactly one live worker. `stopping`
    is "" or the reason (`cancelled`, `timed-out`) for which its handler has been told to stop, and
    `kill_at` the time at which its worker dies for not obeying.
    """

    __slots__ = (
        "affinity", "agent", "context", "deadline", "entry", "id", "idle", "input_bytes", "kill_at", "overlap",
        "queue_deadline", "queued_at", "readmitted",
        "require_warm", "session", "started_at", "state", "stopping", "timeout_s", "worker",
    )  # fmt: skip

    def __init__(
        self, id: str, agent: str, session: str | None, affinity: str, overlap: str, require_warm: bool,
        timeout_s: float, queue_timeout_s: float, now: float, readmitted: bool = False,
        input_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.id = id
        self.agent = agent
        self.session = session
        self.affinity = affinity
        self.overlap = overlap
        self.require_warm = require_warm
        self.timeout_s = timeout_s
        self.readmitted = readmitted
        self.input_bytes = input_bytes
        self.queued_at = now
        self.queue_deadline = now + queue_timeout_s
        self.state = RunState.QUEUED
        self.worker: Worker | None = None
        self.context: str | None = None
        self.entry: Session | None = None
        self.idle = 0
        self.started_at = 0.0
        self.deadline = 0.0
        self.stopping = ""
        self.kill_at: float | None = None

    def move(self, state: RunState) -> None:
        move(self, TRANSITIONS, state)

    @property
    def waits_for_home(self) -> bool:
        """Whether it will take no other worker than its session's home while that lives."""
        return self.require_warm or self.affinity == "strict"

    def why(self, now: float) -> Why:
        """What decided where it went, and when."""
        home = self.entry.home if self.entry is not None else None
        waited_s = (self.started_at if self.worker is not None else now) - self.queued_at
        return Why(self.affinity, self.overlap, waited_s, self.idle, home.id if home is not None else None)
