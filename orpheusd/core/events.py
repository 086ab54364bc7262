"""What has happened: the only thing the supervisor ever hears. Past tense, immutable, no payloads.

Inputs and results never come here: the engine keeps them beside the run id. Every event is accepted in
every state; a fact about somebody who is already gone is counted and changes nothing.
"""

from typing import NamedTuple

from orpheusd.core.agent import Settings


class AgentLoaded(NamedTuple):
    """A version that was current when the daemon last ran was found on disk at start.

    `sessions` are those that were seen then, least recently used first: id, runs finished, seconds since the last.
    """

    agent: str
    version: int
    settings: Settings
    sessions: tuple[tuple[str, int, float], ...] = ()


class VersionStaged(NamedTuple):
    """A version is ready to be tried: a new one, or the present one again (a restart).

    Answered by VersionPromoted or VersionRefused with the same `request`.
    """

    agent: str
    version: int
    settings: Settings
    request: str


class RemovalRequested(NamedTuple):
    """Somebody wants the agent gone. Answered by AgentRemoved with the same `request`."""

    agent: str
    request: str


class ShutdownRequested(NamedTuple):
    """The daemon is to end. Answered by Stopped when no process is left."""


class TemplateReady(NamedTuple):
    template: str


class TemplateFailed(NamedTuple):
    """The template could not start; `message` says why, to whoever deployed it."""

    template: str
    message: str


class TemplateExited(NamedTuple):
    template: str
    cause: str


class WorkerReady(NamedTuple):
    worker: str


class WorkerFailed(NamedTuple):
    """The worker could not load the agent; it will exit. `message` says why."""

    worker: str
    message: str


class WorkerMisbehaved(NamedTuple):
    """The worker broke the protocol; it must not be believed any more."""

    worker: str
    detail: str


class WorkerExited(NamedTuple):
    """The kernel has proved the worker dead, and everything it said has been heard.

    `undelivered` are runs that it has provably never read, so that their handlers cannot have begun.
    """

    worker: str
    cause: str
    undelivered: frozenset[str] = frozenset()


class RunRequested(NamedTuple):
    """A caller wants the handler executed. None means: the agent's own setting.

    `readmitted`: an earlier daemon accepted it, so that no limit of a queue refuses it now.
    """

    run: str
    agent: str
    session: str | None = None
    affinity: str | None = None
    overlap: str | None = None
    require_warm: bool = False
    timeout_s: float | None = None
    readmitted: bool = False


class RunEnded(NamedTuple):
    """The worker says that a run is over. `state` is a key of `wire.worker.ENDED_STATES`.

    `restored`: the session had lost its home, and its saved state was found. `saved`: it has saved state now.
    """

    worker: str
    run: str
    state: str
    code: str
    restored: bool = False
    saved: bool = False


class CancelRequested(NamedTuple):
    run: str


class SessionEndRequested(NamedTuple):
    agent: str
    session: str


class TimePassed(NamedTuple):
    """Nothing happened but time: the deadline of `next_deadline()` has come."""


Event = (
    AgentLoaded | VersionStaged | RemovalRequested | ShutdownRequested
    | TemplateReady | TemplateFailed | TemplateExited
    | WorkerReady | WorkerFailed | WorkerMisbehaved | WorkerExited
    | RunRequested | RunEnded | CancelRequested | SessionEndRequested | TimePassed
)  # fmt: skip
