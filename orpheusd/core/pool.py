"""The pool: workers are born, given up, and mourned here, and there are as many of them as are wanted.

Which version they are of is decided in `versions.py`, how a process is started or ended in `orders.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from orpheusd.core.adoption import NOT_HEARD, Adopter
from orpheusd.core.agent import Agent, AgentState
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.deaths import mourn, resolve_lost
from orpheusd.core.effects import AgentRemoved, Effect, Recycled
from orpheusd.core.orders import Orders
from orpheusd.core.queues import MIB
from orpheusd.core.restart import Slot
from orpheusd.core.routing import Router
from orpheusd.core.run import RunState
from orpheusd.core.scaling import cheapest, loss, wanted_workers
from orpheusd.core.versions import Versions, quarantine_message
from orpheusd.core.worker import ProcessState, Template, Worker

#: Why a worker is aborted, by what its run was told; the grace completes it.
_STOPPED = {
    "timed-out": "a run timed out and did not stop within", "cancelled": "a run was cancelled and did not stop within"}

#: To ask how much memory the box has costs some 50 µs, and what could change it takes seconds.
MEMORY_RETRY_S = 1.0


class Policy(NamedTuple):
    """The daemon's own limits, the same for every agent. Seconds; and what the inputs of all waiting runs may take."""

    start_timeout_s: float = 30.0
    grace_s: float = 2.0
    drain_s: float = 10.0
    waiting_bytes: int = 256 * MIB


class Pool:
    """Keeps every agent's processes as they are wanted. It decides nothing about which run goes where.

    `templates` and `workers` hold every process that has not exited, by id.
    """

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, router: Router, policy: Policy, boot_id: str,
        uniform: Callable[[], float], free_mb: Callable[[], float],
    ) -> None:  # fmt: skip
        self._emit = emit
        self._deadlines = deadlines
        self._router = router
        self._policy = policy
        self._free_mb = free_mb
        self._orders = Orders(emit, deadlines, policy, boot_id)
        self.templates = self._orders.templates
        self.workers = self._orders.workers
        self.versions = Versions(emit, deadlines, self._orders, uniform)
        self.adopter = Adopter(deadlines, router, self._orders, self.versions)

    def load(self, agent: Agent, version: int, now: float) -> None:
        agent.current = self._orders.start_template(agent, version, agent.settings, None, now)

    # Templates

    def template_ready(self, agent: Agent, template: Template, now: float) -> None:
        if template.state is not ProcessState.STARTING:
            return
        template.move(ProcessState.READY)
        template.deadline = None
        if template is agent.candidate:
            self._orders.fork(agent, template, agent.trial_slot, now)
        else:
            agent.template_slot.succeeded()

    def template_failed(self, agent: Agent, template: Template, message: str, now: float) -> None:
        if template.state is not ProcessState.STARTING:
            return
        if template is agent.candidate:
            self.versions.refuse(agent, message, now)
            return
        self._orders.kill_template(template, now)
        if template is agent.current and not self.adopter.awaits(agent, template):
            self.versions.failed(agent, agent.template_slot, message, now)

    def template_exited(self, agent: Agent, template: Template, cause: str, now: float) -> None:
        silent = self.adopter.awaits(agent, template)
        self.adopter.gone(agent, template.id)
        unasked = not silent and template.state in (ProcessState.STARTING, ProcessState.READY)
        template.move(ProcessState.EXITED)
        self._deadlines.forget(template)
        del self.templates[template.id]
        del agent.templates[template.id]
        if template is agent.candidate:
            self.versions.refuse(agent, f"the agent's template ended before it was ready ({cause})", now)
        elif unasked and template is agent.current:
            self.versions.failed(agent, agent.template_slot, f"the agent's template ended ({cause})", now)

    def template_due(self, agent: Agent, template: Template, now: float) -> None:
        """A template's wake-up."""
        if template.deadline is None or template.state is ProcessState.EXITED:
            return
        if template.deadline > now:
            self._deadlines.arm(template, template.deadline)
        elif template.state is ProcessState.STARTING:
            late = f"the template was not ready within {self._policy.start_timeout_s:g} s"
            self.template_failed(agent, template, NOT_HEARD if self.adopter.awaits(agent, template) else late, now)
        else:
            self._orders.kill_template(template, now)

    # Workers

    def worker_ready(self, agent: Agent, worker: Worker, now: float) -> None:
        if worker.state is not ProcessState.STARTING:
            return
        worker.move(ProcessState.READY)
        worker.deadline = None
        worker.idle_since = now
        if worker.template is agent.candidate:
            self.versions.promote(agent, worker, now)
        self._router.freed(agent, worker, now)

    def worker_failed(self, agent: Agent, worker: Worker, message: str, now: float) -> None:
        if worker.state in (ProcessState.KILLING, ProcessState.EXITED):
            return
        worker.failure = message
        self._orders.kill(agent, worker, message.partition("\n")[0], now)

    def worker_exited(
        self, agent: Agent, worker: Worker, cause: str, undelivered: frozenset[str], now: float
    ) -> None:
        self.adopter.gone(agent, worker.id)
        unasked = worker.failure or worker.state in (ProcessState.STARTING, ProcessState.READY)
        reason = worker.failure or f"its worker ended ({cause})"
        self._orders.never_heard(agent, worker, now)
        worker.move(ProcessState.EXITED)
        del self.workers[worker.id]
        del agent.workers[worker.id]
        agent.idle.discard(worker)
        agent.worn.pop(worker.id, None)
        worker.template.workers -= 1
        self._deadlines.forget(worker)
        if worker.template is agent.candidate:
            self.versions.refuse(agent, reason, now)
        elif unasked and not worker.outdated and not worker.untried:
            # who dies with its template, however late that is noticed, adds nothing to why
            consequence = worker.template.state is ProcessState.EXITED
            self.versions.failed(agent, worker.slot, "" if consequence else reason, now)
        # after the judgement: who waited for it is not to start on workers that this death has condemned
        mourn(self._router, agent, worker, cause, undelivered, now)
        self._orders.leave_slot(agent, worker)

    def run_ended(self, agent: Agent, worker: Worker, completed: bool, now: float) -> None:
        """A run has left `worker`; give the worker its next one, or let it go if it is draining."""
        worker.served += 1
        if completed:
            self.versions.succeeded(agent, worker)
        if 0 < worker.template.settings.recycle_runs <= worker.served:
            self._wears(agent, worker, f"it has had {worker.served} runs", now)
        if worker.state is ProcessState.READY:
            self._router.freed(agent, worker, now)
            if worker.outdated:
                self.versions.linger(agent, worker, now)
        elif worker.state is ProcessState.DRAINING and not worker.runs:
            self._orders.stop(worker, now)

    def worker_grew(self, agent: Agent, worker: Worker, memory_mb: float, now: float) -> None:
        if worker.outgrown(memory_mb):
            most_mb = worker.template.settings.recycle_mb
            self._wears(agent, worker, f"it uses {memory_mb:.0f} MB, more than {most_mb} MB", now)

    def worker_due(self, agent: Agent, worker: Worker, now: float) -> None:
        """A worker's wake-up: its own deadline, and those of its runs."""
        if worker.deadline is not None and worker.deadline <= now:
            self._overdue(agent, worker, now)
        for run in list(worker.runs.values()):
            if run.kill_at is not None and run.kill_at <= now:
                if worker.state is not ProcessState.KILLING:
                    self._orders.abort(agent, worker, f"{_STOPPED[run.stopping]} {self._policy.grace_s:g} s", now)
            elif not run.stopping and run.deadline <= now:
                self._router.stop(run, "timed-out", now)
        for at in (worker.deadline, *(run.kill_at or run.deadline for run in worker.runs.values())):
            if at is not None and at > now:
                self._deadlines.arm(worker, at)

    # The pool as a whole

    def settle(self, agent: Agent, now: float) -> None:
        """Hold what is against what is wanted, and start or stop what differs."""
        if agent.given_up:
            self.versions.go_back(agent, now)
        elif agent.state is AgentState.ACTIVE and agent.current is not None:
            self._scale(agent, agent.current, now)
        elif agent.state is AgentState.QUARANTINED and agent.waiting:
            self._refuse_waiting(agent, "quarantined", quarantine_message(agent), now)
        # while an agent adopts, a template whose workers are not known yet may have some
        if len(agent.templates) > 1 and agent.adoption is None:
            for template in [t for t in agent.templates.values() if not t.workers]:
                if template not in (agent.current, agent.candidate):
                    self._orders.stop_template(template, now)

    def wind_down(self, agent: Agent, why: str, now: float) -> None:
        """Let everything of the agent go; `agent.empty` will say when it has gone."""
        agent.given_up, agent.previous = "", None
        self.versions.refuse(agent, f"{agent.id} is {why}", now)
        self._refuse_waiting(agent, "draining", f"{agent.id} is {why}", now)
        self.adopter.over(agent, now)
        for worker in list(agent.workers.values()):
            self._orders.retire(agent, worker, self._policy.drain_s, now)
        agent.slots.clear()
        agent.vacant.clear()
        agent.current = None

    def farewell(self, agent: Agent, now: float) -> bool:
        """While an agent winds down: stop templates that have no workers. True when nothing is left of it."""
        self._refuse_waiting(agent, "draining", f"{agent.id} is going away", now)
        for template in list(agent.templates.values()):
            if not template.workers:
                self._orders.stop_template(template, now)
        if not agent.empty:
            return False
        if agent.removal_request is not None:
            self._emit(AgentRemoved(agent.id, agent.removal_request))
        return True

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
        if agent.worn:
            self._recycle(agent, now)
        if agent.vacant and template.state is ProcessState.READY:
            self._fill(agent, template, now)

    def _fill(self, agent: Agent, template: Template, now: float) -> None:
        for slot in list(agent.vacant):
            not_before = max(slot.not_before, agent.pace.not_before)
            if not_before <= now and not self._room(agent, now):
                not_before = agent.short_until
            if not_before <= now:
                agent.vacant.remove(slot)
                self._orders.fork(agent, template, slot, now)
                agent.pace.started(now)
            else:
                self._deadlines.arm(agent, not_before)

    def _wears(self, agent: Agent, worker: Worker, why: str, now: float) -> None:
        """The worker is to be replaced as soon as its pool can do without it."""
        if worker.id not in agent.worn and worker.slot.worker is worker and worker.slot in agent.slots:
            agent.worn[worker.id] = why
            if agent.state is AgentState.ACTIVE and not agent.given_up:
                self._recycle(agent, now)

    def _recycle(self, agent: Agent, now: float) -> None:
        """Replace the worn worker that is cheapest to lose, if all others of the pool are ready: one at a time."""
        if agent.candidate is not None or agent.adoption is not None:
            return
        pool = [agent.current, *(slot.worker for slot in agent.slots)]
        if all(process is not None and process.state is ProcessState.READY for process in pool):
            worker = min((agent.workers[id] for id in agent.worn), key=loss)
            self._emit(Recycled(worker.id, agent.worn[worker.id]))
            self.versions.outdate(agent, worker, now)
            self.versions.let_go(agent, now)

    def _room(self, agent: Agent, now: float) -> bool:
        """Whether the box has the memory for one more worker. Those that `min_workers` promises, and the first, start
        in any case: an agent that cannot serve helps nobody, and one worker rarely needs all that it may have."""
        if len(agent.slots) - len(agent.vacant) < max(agent.settings.min_workers, 1):
            return True
        if agent.short_until <= now:
            # what was just started has not taken its memory yet
            promised = sum(worker.template.settings.memory_mb for worker in self.workers.values()
                           if worker.state is ProcessState.STARTING and not worker.adopted)
            if self._free_mb() - promised >= agent.settings.memory_mb:
                return True
            agent.short_until = now + MEMORY_RETRY_S
        return False

    def _shrink(self, agent: Agent, target: int, now: float) -> None:
        """Let go of the slots that are cheapest to lose, empty ones first."""
        while len(agent.slots) > target and agent.vacant:
            agent.slots.remove(agent.vacant.pop())
        workers = cheapest(slot.worker for slot in agent.slots if slot.worker is not None)
        for worker in workers[: max(0, len(agent.slots) - target)]:
            agent.slots.remove(worker.slot)
            agent.worn.pop(worker.id, None)
            worker.slot.worker = None
            if worker.state is ProcessState.READY:
                agent.idle.discard(worker)
                self._orders.stop(worker, now)

    def _replace_template(self, agent: Agent, template: Template, now: float) -> None:
        slot = agent.template_slot
        if slot.not_before <= now:
            agent.current = self._orders.start_template(agent, template.version, template.settings, None, now)
        else:
            self._deadlines.arm(agent, slot.not_before)

    def _refuse_waiting(self, agent: Agent, code: str, message: str, now: float) -> None:
        # the last first, so that none of them takes the place of another meanwhile
        for run in reversed(list(agent.waiting.values())):
            self._router.withdraw(agent, run, RunState.REJECTED, code, message, now)

    def _overdue(self, agent: Agent, worker: Worker, now: float) -> None:
        """The worker's own deadline has passed: the next harder thing is done."""
        if worker.state is ProcessState.STARTING:
            late = (f"the worker was not ready within {self._policy.start_timeout_s:g} s "
                    "(is something slow or waiting at import?)")
            self.worker_failed(agent, worker, NOT_HEARD if worker.adopted else late, now)
        elif worker.state is ProcessState.READY:
            self.versions.linger(agent, worker, now)
        elif worker.state is ProcessState.DRAINING:
            worker.deadline = None
            for run in list(worker.runs.values()):
                self._router.stop(run, "cancelled", now)
        elif worker.state is ProcessState.STOPPING:
            self._orders.kill(
                agent, worker, f"it was told to leave and did not within {self._policy.grace_s:g} s", now)
        elif worker.state is ProcessState.KILLING:
            if worker.killed:
                resolve_lost(self._router, agent, worker, "it was killed, and the kernel has not let it go", now)
                self._orders.leave_slot(agent, worker)
            self._orders.kill(agent, worker, "it was told to die and did not", now)
