"""An agent as the supervisor knows it: its settings, its pool, its sessions and its queue."""

from collections import Counter, OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from orpheusd.core.idle import Idle
from orpheusd.core.lanes import Lane
from orpheusd.core.lifecycle import move
from orpheusd.core.restart import Backoff, Previous, Record, Slot
from orpheusd.core.run import Run
from orpheusd.core.scaling import Lull
from orpheusd.core.sessions import SessionMap
from orpheusd.core.worker import Template, Worker

if TYPE_CHECKING:
    from orpheusd.core.adoption import Adoption


class AgentState(Enum):
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    REMOVED = "removed"


TRANSITIONS: dict[AgentState, tuple[AgentState, ...]] = {
    AgentState.ACTIVE: (AgentState.QUARANTINED, AgentState.REMOVED),
    AgentState.QUARANTINED: (AgentState.ACTIVE, AgentState.REMOVED),
    AgentState.REMOVED: (),
}


class Settings(NamedTuple):
    """What the supervisor needs of a version's agent.yaml; the meaning is in docs/agent-yaml.md."""

    concurrency: int = 1
    timeout_s: float = 300.0
    min_workers: int = 1
    max_workers: int = 10
    queue_size: int = 200
    queue_timeout_s: float = 300.0
    scale_up_threshold: float = 1.0
    scale_down_threshold: float = 0.5
    idle_timeout_s: float = 300.0
    affinity: str = "soft"
    patience_s: float = 0.1
    overlap: str = "allow"
    session_ttl_s: float = 86400.0
    session_max: int = 100_000
    session_queue_size: int = 32
    drain_s: float = 300.0
    memory_mb: int = 512
    #: 0 is never.
    recycle_runs: int = 0
    recycle_mb: int = 0


class Agent:
    """One agent while it is deployed.

    Invariant: `current` is the template whose version serves; `candidate` one on trial, or None. `slots` is
    the pool: each live worker that takes new sessions is in exactly one slot. `waiting` holds the queued
    runs in order of arrival, and each of them is in one lane of `lanes`; `rotation` holds the lanes that any
    worker of the pool may serve. `started` is the number of runs on workers, `outdated_runs` of those on outdated
    ones; `owed` are those that are over on an adopted worker, which is about to say so. `vacant` holds the slots
    without a worker; `pace` is what they wait for together; `worn` has the workers of the pool that are to be
    recycled, and why. `previous` is what served before `current`, while that has not shown that it works; `given_up`
    is why it never will, "" unless `previous` is to take its place again. Until `short_until` the box had too little
    memory for one more worker.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.id = name
        self.state = AgentState.ACTIVE
        self.settings = settings
        self.current: Template | None = None
        self.candidate: Template | None = None
        self.trial_slot = Slot()
        self.template_slot = Slot()
        self.templates: dict[str, Template] = {}
        self.workers: dict[str, Worker] = {}
        self.slots: list[Slot] = []
        self.vacant: list[Slot] = []
        self.idle = Idle()
        self.sessions = SessionMap()
        self.waiting: OrderedDict[str, Run] = OrderedDict()
        self.waiting_bytes = 0
        self.lanes: dict[str, Lane] = {}
        self.rotation: OrderedDict[Lane, None] = OrderedDict()
        self.started = 0
        self.outdated_runs = 0
        self.owed: set[str] = set()
        self.lull = Lull()
        self.record = Record()
        self.worn: dict[str, str] = {}
        self.pace = Backoff()
        self.previous: Previous | None = None
        self.given_up = ""
        self.short_until = 0.0
        self.quarantined_until = 0.0
        self.adoption: Adoption | None = None
        self.removal_request: str | None = None
        self.counts: Counter[str] = Counter()
        self.contexts: Counter[str] = Counter()

    def move(self, state: AgentState) -> None:
        move(self, TRANSITIONS, state)

    @property
    def demand(self) -> int:
        """Runs on the pool's workers, and sessions whose next run any of them could take: what one more worker would
        help."""
        return self.started - self.outdated_runs - len(self.owed) + len(self.rotation)

    @property
    def going_on(self) -> int:
        """Runs on workers, and those that an earlier daemon left and nobody has spoken for yet."""
        return self.started + (len(self.adoption.unfinished) if self.adoption is not None else 0)

    @property
    def unwanted(self) -> bool:
        """Whether it is to go: it was removed, or its first version did not come to be."""
        return self.state is AgentState.REMOVED or (self.current is None and self.candidate is None)

    @property
    def empty(self) -> bool:
        """Whether no process of it is left."""
        return not self.workers and not self.templates
