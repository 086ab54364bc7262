"""Orders to processes: a template or a worker is started, asked to leave, aborted or killed, each with its deadline.

Each order moves the process in its lifecycle, says when to look again, and tells the engine. Why it is given is
not known here: `pool.py` and `versions.py` decide that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from orpheusd.core.agent import Agent, Settings
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.effects import (
    AbortWorker,
    Effect,
    ForkWorker,
    KillTemplate,
    KillWorker,
    StartTemplate,
    StopTemplate,
    StopWorker,
)
from orpheusd.core.restart import Slot
from orpheusd.core.worker import ProcessState, Template, Worker

if TYPE_CHECKING:
    from orpheusd.core.pool import Policy

#: An aborted worker writes down its stack and is gone in milliseconds. One that is not by then ignores it, or is
#: stopped, and must be gone within a second of its run's grace.
ABORT_S = 0.5
#: After a SIGKILL only the kernel can be slow; look again this often.
KILL_RETRY_S = 5.0


class Orders:
    """Invariant: `templates` and `workers` hold every process that has been started and has not exited, by id."""

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, policy: "Policy", boot_id: str
    ) -> None:
        self._emit = emit
        self._deadlines = deadlines
        self._policy = policy
        self._boot_id = boot_id
        self._born = 0
        self.templates: dict[str, Template] = {}
        self.workers: dict[str, Worker] = {}

    def start_template(
        self, agent: Agent, version: int, settings: Settings, request: str | None, now: float
    ) -> Template:
        self._born += 1
        template = Template(f"t-{self._boot_id}-{self._born}", agent.id, version, settings, request)
        self.templates[template.id] = agent.templates[template.id] = template
        template.deadline = now + self._policy.start_timeout_s
        self._deadlines.arm(template, template.deadline)
        self._emit(StartTemplate(template.id, agent.id, version))
        return template

    def stop_template(self, template: Template, now: float) -> None:
        if template.state in (ProcessState.STARTING, ProcessState.READY):
            template.move(ProcessState.STOPPING)
            self._emit(StopTemplate(template.id))
            template.deadline = now + self._policy.grace_s
            self._deadlines.arm(template, template.deadline)

    def kill_template(self, template: Template, now: float) -> None:
        if template.state is not ProcessState.KILLING:
            template.move(ProcessState.KILLING)
        self._emit(KillTemplate(template.id))
        template.deadline = now + KILL_RETRY_S
        self._deadlines.arm(template, template.deadline)

    def fork(self, agent: Agent, template: Template, slot: Slot, now: float) -> None:
        self._born += 1
        worker = Worker(f"w-{self._boot_id}-{self._born}", template, slot, now)
        self.workers[worker.id] = agent.workers[worker.id] = slot.worker = worker
        template.workers += 1
        worker.deadline = now + self._policy.start_timeout_s
        self._deadlines.arm(worker, worker.deadline)
        self._emit(ForkWorker(template.id, worker.id))

    def stop(self, worker: Worker, now: float) -> None:
        """Ask a worker without runs to leave."""
        worker.move(ProcessState.STOPPING)
        self._emit(StopWorker(worker.id))
        worker.deadline = now + self._policy.grace_s
        self._deadlines.arm(worker, worker.deadline)

    def abort(self, agent: Agent, worker: Worker, why: str, now: float) -> None:
        """Have it die, but tell where it is stuck. Its place is free at once: it may never go."""
        self.leave_slot(agent, worker)
        self.never_heard(agent, worker, now)
        agent.idle.discard(worker)
        worker.move(ProcessState.KILLING)
        self._emit(AbortWorker(worker.id, why))
        worker.deadline = now + ABORT_S
        self._deadlines.arm(worker, worker.deadline)

    def kill(self, agent: Agent, worker: Worker, why: str, now: float) -> None:
        """Have it die. May be said again."""
        self.never_heard(agent, worker, now)
        agent.idle.discard(worker)
        if worker.state is not ProcessState.KILLING:
            worker.move(ProcessState.KILLING)
        worker.killed = True
        self._emit(KillWorker(worker.id, why))
        worker.deadline = now + KILL_RETRY_S
        self._deadlines.arm(worker, worker.deadline)

    def retire(self, agent: Agent, worker: Worker, drain_s: float | None, now: float) -> None:
        """Let a worker go: at once when it is idle, else when its runs are over or `drain_s` has passed."""
        self.leave_slot(agent, worker)
        agent.idle.discard(worker)
        if worker.state is ProcessState.STARTING:
            self.kill(agent, worker, "it is not wanted any more", now)
        elif worker.state is ProcessState.READY and worker.runs:
            worker.move(ProcessState.DRAINING)
        elif worker.state is ProcessState.READY:
            self.stop(worker, now)
        if worker.state is ProcessState.DRAINING and drain_s is not None:
            worker.deadline = now + drain_s
            self._deadlines.arm(worker, worker.deadline)

    def never_heard(self, agent: Agent, worker: Worker, now: float) -> None:
        """Of one that an earlier daemon left and that goes unheard: its sessions wait for nothing any more, and may be
        too old."""
        if worker.unheard:
            self._deadlines.arm(agent, now)

    def leave_slot(self, agent: Agent, worker: Worker) -> None:
        """The worker's slot, if it still has one, is to be refilled."""
        agent.worn.pop(worker.id, None)
        slot = worker.slot
        if slot.worker is worker:
            slot.worker = None
            if slot in agent.slots:
                agent.vacant.append(slot)
