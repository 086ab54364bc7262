"""What is to be done: the supervisor's orders to the engine. The engine carries them out in order."""

from typing import NamedTuple


class StartTemplate(NamedTuple):
    template: str
    agent: str
    version: int


class StopTemplate(NamedTuple):
    """Ask the template to leave; it has no workers any more."""

    template: str


class KillTemplate(NamedTuple):
    """Kill the template and everything in its sandbox."""

    template: str


class ForkWorker(NamedTuple):
    template: str
    worker: str


class StopWorker(NamedTuple):
    """Ask an idle worker to leave."""

    worker: str


class AbortWorker(NamedTuple):
    """Have the worker die by SIGABRT, on which it writes down where it is stuck. One that does not is killed later.

    `why` completes the sentence: orpheusd ended it because …
    """

    worker: str
    why: str


class KillWorker(NamedTuple):
    """`why` as in AbortWorker; of several orders about one worker the first one's counts."""

    worker: str
    why: str


class Recycled(NamedTuple):
    """The worker has left its pool, and another takes its place; this orders nothing. `why` is a
    sentence about the worker."""

    worker: str
    why: str


class Dispatch(NamedTuple):
    """Hand the run to the worker. `context` and `turn` are None and 0 without a session."""

    worker: str
    run: str
    session: str | None
    context: str | None
    turn: int
    timeout_s: float


class CancelRun(NamedTuple):
    """Raise in the run's handler; `reason` is `cancelled` or `timed-out`."""

    worker: str
    run: str
    reason: str


class EndSession(NamedTuple):
    """A session is over: tell its home, if that lives (`worker` is None if not), and remember it no more.

    `reason` is `ttl`, `evicted` or `ended`.
    """

    worker: str | None
    session: str
    reason: str
    agent: str


class Why(NamedTuple):
    """The facts behind a placement: what was asked for, how long it waited, how many workers were open when it
    started, and the session's home then."""

    affinity: str
    overlap: str
    waited_s: float
    idle: int
    home: str | None


class Resolve(NamedTuple):
    """Answer the caller: the run is in its terminal state. `code` is "" when it completed.

    `cause` is how its worker died, when that ended it. `retry_in_s` is when asking again makes sense, where the core
    knows better than the code's own number, else 0.
    """

    run: str
    state: str
    code: str
    message: str
    worker: str | None
    session: str | None
    context: str | None
    turn: int
    duration_s: float
    cause: str
    agent: str
    why: Why
    retry_in_s: float = 0.0


class VersionPromoted(NamedTuple):
    """The staged version has shown that it works, and is the agent's current one from now on."""

    agent: str
    version: int
    request: str


class VersionRefused(NamedTuple):
    """The staged version could not be made to work; what was current still is."""

    agent: str
    version: int
    request: str
    message: str


class RolledBack(NamedTuple):
    """The current version kept losing its workers in its first minute; the one of before serves again."""

    agent: str
    version: int
    failed: int
    reason: str


class AgentRemoved(NamedTuple):
    """The agent is forgotten and no process of it is left."""

    agent: str
    request: str


class Stopped(NamedTuple):
    """Every process is gone; the daemon may exit."""


Effect = (
    StartTemplate | StopTemplate | KillTemplate | ForkWorker | StopWorker | AbortWorker | KillWorker
    | Recycled | Dispatch | CancelRun | EndSession | Resolve | VersionPromoted | VersionRefused | RolledBack
    | AgentRemoved | Stopped
)  # fmt: skip
