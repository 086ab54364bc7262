"""The pool: templates and workers are born, promoted, drained, and mourned here.

A deploy, a restart and a rollback are one mechanism: a template of the wanted version is started on trial,
forks one worker, and when that worker is ready the version is promoted and the old workers drain. What goes
wrong before that is the caller's answer and changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from orpheusd.core.adoption import Adopter
from orpheusd.core.agent import Agent, AgentState, Settings
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.deaths import mourn, resolve_lost
from orpheusd.core.effects import (
    AgentRemoved,
    Effect,
    ForkWorker,
    KillTemplate,
    KillWorker,
    StartTemplate,
    StopTemplate,
    StopWorker,
    VersionPromoted,
    VersionRefused,
)  # fmt: skip
from orpheusd.core.restart import QUARANTINE_S, Slot
from orpheusd.core.routing import Router
from orpheusd.core.run import RunState
from orpheusd.core.scaling import cheapest, wanted_workers
from orpheusd.core.worker import ProcessState, Template, Worker

#: After a SIGKILL only the kernel can be slow; look again this often.
KILL_RETRY_S = 5.0


class Policy(NamedTuple):
    """The daemon's own limits, the same for every agent. Seconds."""

    start_timeout_s: float = 30.0
    grace_s: float = 2.0
    drain_s: float = 10.0


class Pool:
    """Keeps every agent's processes as they are wanted. It decides nothing about which run goes where.

    `templates` and `workers` hold every process that has not exited, by id.
    """

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, router: Router, policy: Policy, boot_id: str,
        uniform: Callable[[], float],
    ) -> None:  # fmt: skip
        self._emit = emit
        self._deadlines = deadlines
        self._router = router
        self._policy = policy
        self._boot_id = boot_id
        self._uniform = uniform
        self._born = 0
        self.templates: dict[str, Template] = {}
        self.workers: dict[str, Worker] = {}
        self.adopter = Adopter(deadlines, router, self.templates, self.workers)

    # Versions

    def load(self, agent: Agent, version: int, now: float) -> None:
        agent.current = self._start_template(agent, version, agent.settings, None, now)

    def stage(self, agent: Agent, version: int, settings: Settings, request: str, now: float) -> None:
        if agent.candidate is not None or agent.state is AgentState.REMOVED:
            why = "another deploy or restart of it is going on" if agent.candidate else "it is being removed"
            self._emit(VersionRefused(agent.id, version, request, f"cannot change {agent.id} now: {why}; try again"))
            return
        agent.candidate = self._start_template(agent, version, settings, request, now)

    def refuse(self, agent: Agent, message: str, now: float) -> None:
        """The candidate has failed its trial: tell its caller, kill it, and forget it."""
        template = agent.candidate
        if template is None or template.request is None:
            return
        agent.candidate = None
        agent.trial_slot = Slot()
        self._emit(VersionRefused(agent.id, template.version, template.request, message))
        for worker in [w for w in agent.workers.values() if w.template is template]:
            if worker.state is not ProcessState.KILLING:
                self.kill(agent, worker, now)
        if template.state is not ProcessState.EXITED:
            self._kill_template(template, now)

    # Templates

    def template_ready(self, agent: Agent, template: Template, now: float) -> None:
        if template.state is not ProcessState.STARTING:
            return
        template.move(ProcessState.READY)
        template.deadline = None
        if template is agent.candidate:
            self._fork(agent, template, agent.trial_slot, now)
        else:
            agent.template_slot.succeeded()

    def template_failed(self, agent: Agent, template: Template, message: str, now: float) -> None:
        if template.state is not ProcessState.STARTING:
            return
        if template is agent.candidate:
            self.refuse(agent, message, now)
            return
        self._kill_template(template, now)
        self._failure(agent, agent.template_slot, message, now)

    def template_exited(self, agent: Agent, template: Template, cause: str, now: float) -> None:
        self.adopter.gone(agent, template.id)
        unasked = template.state in (ProcessState.STARTING, ProcessState.READY)
        template.move(ProcessState.EXITED)
        self._deadlines.forget(template)
        del self.templates[template.id]
        del agent.templates[template.id]
        if template is agent.candidate:
            self.refuse(agent, f"the agent's template ended before it was ready ({cause})", now)
        elif unasked and template is agent.current:
            self._failure(agent, agent.template_slot, f"the agent's template ended ({cause})", now)

    def template_due(self, agent: Agent, template: Template, now: float) -> None:
        """A template's wake-up."""
        if template.deadline is None or template.state is ProcessState.EXITED:
            return
        if template.deadline > now:
            self._deadlines.arm(template, template.deadline)
        elif template.state is ProcessState.STARTING:
            self.template_failed(
                agent, template, f"the template was not ready within {self._policy.start_timeout_s:g} s", now)
        else:
            self._kill_template(template, now)

    # Workers

    def worker_ready(self, agent: Agent, worker: Worker, now: float) -> None:
        if worker.state is not ProcessState.STARTING:
            return
        worker.move(ProcessState.READY)
        worker.deadline = None
        worker.idle_since = now
        if worker.template is agent.candidate:
            self._promote(agent, worker, now)
        self._router.freed(agent, worker, now)

    def worker_failed(self, agent: Agent, worker: Worker, message: str, now: float) -> None:
        if worker.state in (ProcessState.KILLING, ProcessState.EXITED):
            return
        worker.failure = message
        self.kill(agent, worker, now)

    def worker_exited(
        self, agent: Agent, worker: Worker, cause: str, undelivered: frozenset[str], now: float
    ) -> None:
        self.adopter.gone(agent, worker.id)
        unasked = worker.failure or worker.state in (ProcessState.STARTING, ProcessState.READY)
        reason = worker.failure or f"its worker ended ({cause})"
        worker.move(ProcessState.EXITED)
        del self.workers[worker.id]
        del agent.workers[worker.id]
        agent.idle.pop(worker.id, None)
        worker.template.workers -= 1
        self._deadlines.forget(worker)
        mourn(self._router, agent, worker, cause, undelivered, now)
        slot = worker.slot
        if worker.template is agent.candidate:
            self.refuse(agent, reason, now)
        elif unasked:
            self._failure(agent, slot, reason, now)
        self._leave_slot(agent, worker)

    def run_ended(self, agent: Agent, worker: Worker, completed: bool, now: float) -> None:
        """A run has left `worker`; give the worker its next one, or let it go if it is draining."""
        worker.served += 1
        if completed:
            worker.slot.succeeded()
            agent.record.clear()
        if worker.state is ProcessState.READY:
            self._router.freed(agent, worker, now)
        elif worker.state is ProcessState.DRAINING and not worker.runs:
            self._stop(worker, now)

    def retire(self, agent: Agent, worker: Worker, drain_s: float | None, now: float) -> None:
        """Let a worker go: at once when it is idle, else when its runs are over or `drain_s` has passed."""
        self._leave_slot(agent, worker)
        agent.idle.pop(worker.id, None)
        if worker.state is ProcessState.STARTING:
            self.kill(agent, worker, now)
        elif worker.state is ProcessState.READY and worker.runs:
            worker.move(ProcessState.DRAINING)
        elif worker.state is ProcessState.READY:
            self._stop(worker, now)
        if worker.state is ProcessState.DRAINING and drain_s is not None:
            worker.deadline = now + drain_s
            self._deadlines.arm(worker, worker.deadline)

    def kill(self, agent: Agent, worker: Worker, now: float) -> None:
        agent.idle.pop(worker.id, None)
        if worker.state is not ProcessState.KILLING:
            worker.move(ProcessState.KILLING)
        self._emit(KillWorker(worker.id))
        worker.deadline = now + KILL_RETRY_S
        self._deadlines.arm(worker, worker.deadline)

    def worker_due(self, agent: Agent, worker: Worker, now: float) -> None:
        """A worker's wake-up: its own deadline, and those of its runs."""
        if worker.deadline is not None and worker.deadline <= now:
            self._overdue(agent, worker, now)
        for run in list(worker.runs.values()):
            if run.kill_at is not None and run.kill_at <= now:
                if worker.state is not ProcessState.KILLING:
                    self.kill(agent, worker, now)
            elif not run.stopping and run.deadline <= now:
                self._router.stop(run, "timed-out", now)
        for at in (worker.deadline, *(run.kill_at or run.deadline for run in worker.runs.values())):
            if at is not None and at > now:
                self._deadlines.arm(worker, at)

    # The pool as a whole

    def settle(self, agent: Agent, now: float) -> None:
        """Hold what is against what is wanted, and start or stop what differs."""
        if agent.state is AgentState.ACTIVE and agent.current is not None:
            self._scale(agent, agent.current, now)
        elif agent.state is AgentState.QUARANTINED and agent.waiting:
            self._refuse_waiting(agent, "quarantined", quarantine_message(agent), now)
        for template in [t for t in agent.templates.values() if not t.workers] if len(agent.templates) > 1 else ():
            if template not in (agent.current, agent.candidate):
                self._stop_template(template, now)

    def wind_down(self, agent: Agent, why: str, now: float) -> None:
        """Let everything of the agent go; `agent.empty` will say when it has gone."""
        self.refuse(agent, f"{agent.id} is {why}", now)
        self._refuse_waiting(agent, "draining", f"{agent.id} is {why}", now)
        for worker in list(agent.workers.values()):
            self.retire(agent, worker, self._policy.drain_s, now)
        agent.slots.clear()
        agent.vacant.clear()
        agent.current = None

    def farewell(self, agent: Agent, now: float) -> bool:
        """While an agent winds down: stop templates that have no workers. True when nothing is left of it."""
        self._refuse_waiting(agent, "draining", f"{agent.id} is going away", now)
        for template in list(agent.templates.values()):
            if not template.workers:
                self._stop_template(template, now)
        if not agent.empty:
            return False
        if agent.removal_request is not None:
            self._emit(AgentRemoved(agent.id, agent.removal_request))
        return True

    def release(self, agent: Agent, now: float) -> None:
        """The end of a quarantine: the agent may try again."""
        agent.move(AgentState.ACTIVE)
        agent.record.clear()
        for slot in [agent.template_slot, *agent.slots]:
            slot.not_before = 0.0

    def _scale(self, agent: Agent, template: Template, now: float) -> None:
        if template.state is ProcessState.EXITED or template.state is ProcessState.KILLING:
            self._replace_template(agent, template, now)
            return
        settings = agent.settings
        demand = agent.demand
        wanted = wanted_workers(demand, settings)
        while len(agent.slots) < wanted:
            slot = Slot()
            agent.slots.append(slot)
            agent.vacant.append(slot)
        agent.lull.observe(demand, len(agent.slots), settings, now)
        if agent.lull.over(settings, now):
            self._shrink(agent, max(wanted, wanted_workers(agent.lull.peak, settings)), now)
            agent.lull.since = None
        if agent.lull.since is not None and agent.lull.since + settings.idle_timeout_s > now:
            self._deadlines.arm(agent, agent.lull.since + settings.idle_timeout_s)
        if agent.vacant and template.state is ProcessState.READY:
            self._fill(agent, template, now)

    def _fill(self, agent: Agent, template: Template, now: float) -> None:
        for slot in list(agent.vacant):
            if slot.not_before <= now:
                agent.vacant.remove(slot)
                self._fork(agent, template, slot, now)
            else:
                self._deadlines.arm(agent, slot.not_before)

    def _shrink(self, agent: Agent, target: int, now: float) -> None:
        """Let go of the slots that are cheapest to lose, empty ones first."""
        while len(agent.slots) > target and agent.vacant:
            agent.slots.remove(agent.vacant.pop())
        workers = cheapest(slot.worker for slot in agent.slots if slot.worker is not None)
        for worker in workers[: max(0, len(agent.slots) - target)]:
            agent.slots.remove(worker.slot)
            worker.slot.worker = None
            if worker.state is ProcessState.READY:
                agent.idle.pop(worker.id, None)
                self._stop(worker, now)

    def _promote(self, agent: Agent, first: Worker, now: float) -> None:
        template = first.template
        request, template.request = template.request or "", None
        agent.current, agent.candidate = template, None
        agent.settings = template.settings
        self._deadlines.arm(agent, now)  # what is due by the new settings may be due earlier
        if agent.state is AgentState.QUARANTINED:
            agent.move(AgentState.ACTIVE)
        agent.record.clear()
        for worker in [w for w in agent.workers.values() if w is not first]:
            self.retire(agent, worker, None, now)
        agent.slots, agent.vacant = [agent.trial_slot], []
        agent.trial_slot, agent.template_slot = Slot(), Slot()
        self._emit(VersionPromoted(agent.id, template.version, request))

    def _replace_template(self, agent: Agent, template: Template, now: float) -> None:
        slot = agent.template_slot
        if slot.not_before <= now:
            agent.current = self._start_template(agent, template.version, template.settings, None, now)
        else:
            self._deadlines.arm(agent, slot.not_before)

    def _start_template(
        self, agent: Agent, version: int, settings: Settings, request: str | None, now: float
    ) -> Template:
        self._born += 1
        template = Template(f"t-{self._boot_id}-{self._born}", agent.id, version, settings, request)
        self.templates[template.id] = agent.templates[template.id] = template
        template.deadline = now + self._policy.start_timeout_s
        self._deadlines.arm(template, template.deadline)
        self._emit(StartTemplate(template.id, agent.id, version))
        return template

    def _stop_template(self, template: Template, now: float) -> None:
        if template.state in (ProcessState.STARTING, ProcessState.READY):
            template.move(ProcessState.STOPPING)
            self._emit(StopTemplate(template.id))
            template.deadline = now + self._policy.grace_s
            self._deadlines.arm(template, template.deadline)

    def _kill_template(self, template: Template, now: float) -> None:
        if template.state is not ProcessState.KILLING:
            template.move(ProcessState.KILLING)
        self._emit(KillTemplate(template.id))
        template.deadline = now + KILL_RETRY_S
        self._deadlines.arm(template, template.deadline)

    def _fork(self, agent: Agent, template: Template, slot: Slot, now: float) -> None:
        self._born += 1
        worker = Worker(f"w-{self._boot_id}-{self._born}", template, slot, now)
        self.workers[worker.id] = agent.workers[worker.id] = slot.worker = worker
        worker.held_back = agent.adoption is not None
        template.workers += 1
        worker.deadline = now + self._policy.start_timeout_s
        self._deadlines.arm(worker, worker.deadline)
        self._emit(ForkWorker(template.id, worker.id))

    def _stop(self, worker: Worker, now: float) -> None:
        worker.move(ProcessState.STOPPING)
        self._emit(StopWorker(worker.id))
        worker.deadline = now + self._policy.grace_s
        self._deadlines.arm(worker, worker.deadline)

    def _leave_slot(self, agent: Agent, worker: Worker) -> None:
        slot = worker.slot
        if slot.worker is worker:
            slot.worker = None
            if slot in agent.slots:
                agent.vacant.append(slot)

    def _failure(self, agent: Agent, slot: Slot, reason: str, now: float) -> None:
        slot.failed(now, self._uniform)
        agent.record.failed(now, reason)
        if agent.record.exhausted(now) and agent.state is AgentState.ACTIVE:
            agent.move(AgentState.QUARANTINED)
            agent.quarantined_until = now + QUARANTINE_S
            self._deadlines.arm(agent, agent.quarantined_until)

    def _refuse_waiting(self, agent: Agent, code: str, message: str, now: float) -> None:
        # the last first, so that none of them takes the place of another meanwhile
        for run in reversed(list(agent.waiting.values())):
            self._router.withdraw(agent, run, RunState.REJECTED, code, message, now)

    def _overdue(self, agent: Agent, worker: Worker, now: float) -> None:
        """The worker's own deadline has passed: the next harder thing is done."""
        if worker.state is ProcessState.STARTING:
            self.worker_failed(agent, worker, f"the worker was not ready within {self._policy.start_timeout_s:g} s "
                               "(is something slow or waiting at import?)", now)
        elif worker.state is ProcessState.DRAINING:
            worker.deadline = None
            for run in list(worker.runs.values()):
                self._router.stop(run, "cancelled", now)
        elif worker.state in (ProcessState.STOPPING, ProcessState.KILLING):
            if worker.state is ProcessState.KILLING:
                resolve_lost(self._router, agent, worker, "it was killed, and the kernel has not let it go", now)
            self.kill(agent, worker, now)


def quarantine_message(agent: Agent) -> str:
    return (
        f"{agent.id} is refused for a while because its workers keep dying: {agent.record.reason}; `orpheusctl logs "
        f"{agent.id}` has what they said, and a deploy that works ends it at once")
