"""What has happened: the only thing the supervisor ever hears. Past tense, immutable, no payloads.

Inputs and results never come here: the engine keeps them beside the run id. Every event is accepted in
every state; a fact about somebody who is already gone is counted and changes nothing.
"""

from typing import NamedTuple

from orpheusd.core.agent import Settings


class Seen(NamedTuple):
    """A session as it was last seen. `home` is the worker that held it then, None when nobody did."""

    id: str
    turns: int
    idle_s: float
    home: str | None = None
    saved: bool = False


class Orphan(NamedTuple):
    """A template that an earlier daemon started and that may still be there."""

    template: str
    version: int
    settings: Settings


class Unfinished(NamedTuple):
    """A run that has no end yet, as the run log or the worker that holds it has it. `worker` is None when the log does
    not say that it was started. `left_s` is what it has left of its timeout, `elapsed_s` how long it has gone on;
    `over`: its RunEnded follows."""

    run: str
    session: str | None
    context: str | None
    worker: str | None
    left_s: float
    over: bool = False
    elapsed_s: float = 0.0


class AgentLoaded(NamedTuple):
    """A version that was current when the daemon last ran was found on disk at start.

    `sessions` are those that were seen then, least recently used first; `unfinished` the runs that the log has no
    end of; `orphans` the templates whose workers may have both.
    """

    agent: str
    version: int
    settings: Settings
    sessions: tuple[Seen, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()


class TemplateAdopted(NamedTuple):
    """An orphan has dialled again; `workers` are those it has."""

    template: str
    workers: tuple[str, ...]


class WorkerAdopted(NamedTuple):
    """A worker of an orphan has dialled again; `sessions` are those it holds, `runs` those whose end nobody has
    acknowledged."""

    worker: str
    sessions: tuple[Seen, ...]
    runs: tuple[Unfinished, ...]


class WorkerGrew(NamedTuple):
    """A worker was seen to use more memory than it should for long."""

    worker: str
    memory_mb: float


class VersionStaged(NamedTuple):
    """A version is ready to be tried: a new one, an older one, or the present one again (a restart).

    Answered by VersionPromoted or VersionRefused with the same `request`. `at_once`: the workers it replaces do not
    stay for their sessions.
    """

    agent: str
    version: int
    settings: Settings
    request: str
    at_once: bool = False


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

    `readmitted`: an earlier daemon accepted it, so that no limit of a queue refuses it now. `input_bytes`: what its
    input takes of the daemon's memory while it waits.
    """

    run: str
    agent: str
    session: str | None = None
    affinity: str | None = None
    overlap: str | None = None
    require_warm: bool = False
    timeout_s: float | None = None
    readmitted: bool = False
    input_bytes: int = 0


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
    AgentLoaded | TemplateAdopted | WorkerAdopted | VersionStaged | RemovalRequested | ShutdownRequested
    | TemplateReady | TemplateFailed | TemplateExited
    | WorkerReady | WorkerFailed | WorkerMisbehaved | WorkerGrew | WorkerExited
    | RunRequested | RunEnded | CancelRequested | SessionEndRequested | TimePassed
)  # fmt: skip
