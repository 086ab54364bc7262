"""What an onlooker knows of agents, processes, runs and sessions, from events and effects alone.

Nothing here comes from the core's own objects: two accounts of one story are only worth comparing while they
are kept apart.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from orpheusd.core.agent import Settings


@dataclass
class TemplateRecord:
    id: str
    agent: str
    version: int
    settings: Settings
    deadline: float | None
    at_once: bool = False
    state: str = "starting"  # or ready, stopping, killed
    adopted: bool = False

    @property
    def silent(self) -> bool:
        """Whether an earlier daemon left it, and it has not dialled."""
        return self.adopted and self.state == "starting"


@dataclass
class WorkerRecord:
    """`leaving`: it may have no more runs, because it was asked to go or its version was replaced. `outdated_at`: when
    its version was replaced, or it was recycled; if it is not leaving, it may have the runs of its own sessions.
    `grown`: it uses more memory than it should. `blamed`: its death will be its own fault, though it was killed."""

    id: str
    agent: str
    template: str
    capacity: int
    deadline: float | None
    state: str = "starting"  # or ready, stopping, aborted, killed
    leaving: bool = False
    blamed: bool = False
    drain_deadline: float | None = None
    idle_since: float = 0.0
    outdated_at: float | None = None
    adopted: bool = False
    served: int = 0
    grown: bool = False
    doomed_at: float = 0.0
    runs: dict[str, "RunRecord"] = field(default_factory=dict)

    @property
    def doomed(self) -> bool:
        """Whether its death was ordered."""
        return self.state in ("aborted", "killed")

    @property
    def open(self) -> bool:
        return self.state == "ready" and not self.leaving and len(self.runs) < self.capacity

    @property
    def silent(self) -> bool:
        """Whether an earlier daemon left it, and it has not dialled."""
        return self.adopted and self.state == "starting"

    @property
    def lingers(self) -> bool:
        """Whether it is outdated and stays for its sessions."""
        return self.outdated_at is not None and self.state == "ready" and not self.leaving


@dataclass
class RunRecord:
    id: str
    agent: str
    session: str | None
    strict: bool
    overlap: str
    warm: bool
    timeout_s: float
    queued_at: float
    queue_deadline: float
    state: str = "waiting"  # or started, ended (its worker is done with it), resolved; unspoken: only the log has it
    logged_on: str | None = None
    worker: str | None = None
    context: str | None = None
    deadline: float = 0.0
    kill_at: float | None = None
    stopping: str = ""
    reported: tuple[str, str] | None = None
    standing: tuple[str | None, bool] | None = None
    overtaken_by: Counter[str] = field(default_factory=Counter)
    input_bytes: int = 0

    @property
    def lane(self) -> str:
        return self.session if self.session is not None else f"run {self.id}"

    @property
    def exclusive(self) -> bool:
        """Whether it may not start while another run of its session goes on."""
        return self.overlap in ("queue", "interrupt")

    @property
    def roams(self) -> bool:
        """Whether it takes another worker when its patience with the home is over."""
        return not self.strict and not self.warm


@dataclass
class PreviousRecord:
    """The version to go back to if the one that serves has not worked until then."""

    version: int
    settings: Settings
    until: float


@dataclass
class SessionRecord:
    home: str
    home_at: float
    last_used: float
    unparked_at: float = 0.0
    turns: int = 0
    saved: bool = False
    running: dict[str, RunRecord] = field(default_factory=dict)


@dataclass
class AdoptionRecord:
    """Who has not been heard since the last daemon died, until when they have time, and the homes the disk knows."""

    deadline: float
    templates: set[str]
    workers: set[str]
    homes: dict[str, str]

    def complete(self, now: float) -> bool:
        """Whether nobody need be waited for: a template is, as long as it lives, because nobody knows its workers."""
        return not self.templates and (not self.workers or self.deadline <= now)


@dataclass
class AgentRecord:
    """`current` and `candidate` are ids of templates; `patiences` are all that its versions have had; `failures` the
    times of deaths that count against it. `given_up`: its version is to give way to `previous`. A candidate without a
    request is that."""

    id: str
    settings: Settings
    current: str | None = None
    version: int = 0
    candidate: str | None = None
    candidate_request: str = ""
    removal: str | None = None
    waiting: dict[str, RunRecord] = field(default_factory=dict)
    sessions: dict[str, SessionRecord] = field(default_factory=dict)
    patiences: list[float] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)
    quarantined_until: float | None = None
    previous: PreviousRecord | None = None
    given_up: bool = False
    adoption: AdoptionRecord | None = None
    settled_at: float = 0.0

    @property
    def exists(self) -> bool:
        """Whether it has a version that serves, or one that may."""
        return self.current is not None or self.candidate is not None

    def heads(self) -> Iterator[RunRecord]:
        """The runs that are first in their lanes."""
        seen: set[str] = set()
        for run in self.waiting.values():
            if run.lane not in seen:
                seen.add(run.lane)
                yield run

    def session_of(self, run: RunRecord) -> SessionRecord | None:
        return self.sessions.get(run.session) if run.session is not None else None

    def blocks(self, run: RunRecord) -> bool:
        """Whether the run may not start, whoever is free: another of its session goes on, or it is not known yet where
        that lives."""
        session = self.session_of(run)
        overlaps = run.exclusive and session is not None and bool(session.running)
        return overlaps or (self.adoption is not None and run.session is not None)

    def waits(self, session: str) -> bool:
        return any(run.session == session for run in self.waiting.values())

    def in_use(self, session: str) -> bool:
        return bool(self.sessions[session].running) or self.waits(session)


class BrokenPromise(AssertionError):
    """The core did something that its design does not allow."""


def hold(condition: object, what: str) -> None:
    if not condition:
        raise BrokenPromise(what)
