"""Workers and templates: one process each, born once, dead once.

Both live by the same table. It only goes forward: what exited never comes back, a slot gets a new worker
instead. Busy is not a state; it is having runs.
"""

from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING

from orpheusd.core.lifecycle import move

if TYPE_CHECKING:
    from orpheusd.core.agent import Settings
    from orpheusd.core.lanes import Lane
    from orpheusd.core.restart import Slot
    from orpheusd.core.run import Run


class ProcessState(Enum):
    """How far a worker or a template has come in its life."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is Python code on the hot path

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    KILLING = "killing"
    EXITED = "exited"


TRANSITIONS: dict[ProcessState, tuple[ProcessState, ...]] = {
    ProcessState.STARTING: (
        ProcessState.READY, ProcessState.STOPPING, ProcessState.KILLING, ProcessState.EXITED),
    ProcessState.READY: (
        ProcessState.DRAINING, ProcessState.STOPPING, ProcessState.KILLING, ProcessState.EXITED),
    ProcessState.DRAINING: (ProcessState.STOPPING, ProcessState.KILLING, ProcessState.EXITED),
    ProcessState.STOPPING: (ProcessState.KILLING, ProcessState.EXITED),
    ProcessState.KILLING: (ProcessState.EXITED,),
    ProcessState.EXITED: (),
}


class Template:
    """The process that forks the workers of one agent version.

    Invariant: `workers` counts the workers it forked that have not exited. `request` is set while the
    version is on trial, and names who waits for the verdict. `at_once`: the workers it replaces do not stay
    for their sessions.
    """

    __slots__ = ("agent", "at_once", "deadline", "id", "request", "settings", "state", "version", "workers")

    def __init__(self, id: str, agent: str, version: int, settings: "Settings", request: str | None) -> None:
        self.id = id
        self.agent = agent
        self.version = version
        self.settings = settings
        self.request = request
        self.at_once = False
        self.state = ProcessState.STARTING
        self.workers = 0
        self.deadline: float | None = None

    def move(self, state: ProcessState) -> None:
        move(self, TRANSITIONS, state)


class Worker:
    """One worker process.

    Invariant: it has runs only while READY, DRAINING or KILLING, and never more than `capacity` of them; one that was
    `adopted` has what it had. `sessions` counts the sessions whose home it is, `saved` those of them with saved
    state; `lanes` are the waiting lanes that want it. `outdated_at` is when a newer version replaced its own, or when
    it was recycled, and None while it is of the pool: from then on it serves the runs of its own sessions only, and
    leaves when none has come for a while. `killed` tells that KILLING has come to SIGKILL.
    """

    __slots__ = (
        "adopted", "agent", "capacity", "deadline", "failure", "id", "idle_since", "killed", "lanes", "outdated_at",
        "runs", "saved", "served", "sessions", "slot", "started_at", "state", "template", "version",
    )  # fmt: skip

    def __init__(self, id: str, template: Template, slot: "Slot", now: float) -> None:
        self.id = id
        self.agent = template.agent
        self.version = template.version
        self.template = template
        self.slot = slot
        self.capacity = template.settings.concurrency
        self.state = ProcessState.STARTING
        self.runs: dict[str, Run] = {}
        self.lanes: OrderedDict[Lane, None] = OrderedDict()
        self.sessions = 0
        self.saved = 0
        self.served = 0
        self.started_at = now
        self.idle_since = now
        self.deadline: float | None = None
        self.failure = ""
        self.adopted = False
        self.outdated_at: float | None = None
        self.killed = False

    def move(self, state: ProcessState) -> None:
        move(self, TRANSITIONS, state)

    @property
    def alive(self) -> bool:
        """Whether the kernel has not yet proved it dead."""
        return self.state is not ProcessState.EXITED

    @property
    def open(self) -> bool:
        """Whether it can take one more run now; if it is outdated, of its own sessions."""
        return self.state is ProcessState.READY and len(self.runs) < self.capacity

    @property
    def unheard(self) -> bool:
        """Whether an earlier daemon left it, and it has not dialled yet: what is in it is not known."""
        return self.adopted and self.state is ProcessState.STARTING

    @property
    def untried(self) -> bool:
        """Whether all it has done was under an earlier daemon: what becomes of it says nothing of its version."""
        return self.adopted and not self.served

    def outgrown(self, memory_mb: float) -> bool:
        """Whether it is to be recycled if it uses so much."""
        return not self.outdated and 0 < self.template.settings.recycle_mb < memory_mb

    @property
    def outdated(self) -> bool:
        return self.outdated_at is not None
