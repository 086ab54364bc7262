"""Versions: one is tried, and is promoted or refused; one that keeps losing its workers is rolled back or quarantined.

A deploy, a restart and a rollback are one mechanism: a template of the wanted version is started on trial,
forks one worker, and when that worker is ready the version is promoted. What goes wrong before that is the
caller's answer and changes nothing. The workers of before are outdated then: those that are homes of sessions
stay for these until no run has come for `drain_s`, the others leave. So does a worker that is recycled.

A version that loses its first workers without completing a run is given up: the one that served before is tried
again, as if somebody had deployed it, and runs wait meanwhile.
"""

from collections.abc import Callable

from orpheusd.core.agent import Agent, AgentState, Settings
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.effects import Effect, RolledBack, VersionPromoted, VersionRefused
from orpheusd.core.orders import Orders
from orpheusd.core.restart import PROBATION_DEATHS, PROBATION_S, QUARANTINE_S, Previous, Slot
from orpheusd.core.scaling import loss
from orpheusd.core.worker import ProcessState, Template, Worker


class Versions:
    """Decides which version of an agent serves. It starts no worker but the one on trial."""

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, orders: Orders, uniform: Callable[[], float]
    ) -> None:
        self._emit = emit
        self._deadlines = deadlines
        self._orders = orders
        self._uniform = uniform

    # On trial

    def stage(
        self, agent: Agent, version: int, settings: Settings, request: str, at_once: bool, now: float
    ) -> None:
        """Try the version; `at_once`: when it is promoted, nobody stays for old sessions."""
        if agent.candidate is not None and not agent.candidate.request:
            self._drop(agent, agent.candidate, now)  # what somebody asks for goes before what we do by ourselves
        if agent.candidate is not None or agent.state is AgentState.REMOVED:
            why = "another deploy or restart of it is going on" if agent.candidate else "it is being removed"
            self._emit(VersionRefused(agent.id, version, request, f"cannot change {agent.id} now: {why}; try again"))
            return
        agent.candidate = self._orders.start_template(agent, version, settings, request, now)
        agent.candidate.at_once = at_once

    def refuse(self, agent: Agent, message: str, now: float) -> None:
        """The candidate has failed its trial: tell its caller, kill it, and forget it."""
        template = agent.candidate
        if template is None:
            return
        if template.request:
            self._emit(VersionRefused(agent.id, template.version, template.request, message))
        self._drop(agent, template, now)
        if not template.request and agent.given_up:
            agent.record.reason = f"{agent.given_up}; and version {template.version} does not start again: {message}"
            self._quarantine(agent, now)

    def promote(self, agent: Agent, first: Worker, now: float) -> None:
        """The candidate's first worker is ready: its version serves from now on."""
        template = first.template
        request, template.request = template.request, None
        effect: Effect = VersionPromoted(agent.id, template.version, request or "")
        if not request and agent.current is not None:
            effect = RolledBack(agent.id, template.version, agent.current.version, agent.given_up)
        agent.previous = _previous(agent, template, now) if request else None
        agent.given_up = ""
        agent.current, agent.candidate = template, None
        agent.settings = template.settings
        self._deadlines.arm(agent, now)  # what is due by the new settings may be due earlier
        if agent.state is AgentState.QUARANTINED:
            agent.move(AgentState.ACTIVE)
        agent.record.clear()
        agent.pace.succeeded()
        for worker in [w for w in agent.workers.values() if w is not first]:
            self.outdate(agent, worker, now)
        self.let_go(agent, now)
        agent.slots, agent.vacant = [agent.trial_slot], []
        agent.trial_slot, agent.template_slot = Slot(), Slot()
        self._emit(effect)

    # Outdated workers

    def linger(self, agent: Agent, worker: Worker, now: float) -> None:
        """An outdated worker stays for its sessions until it has had no run for `drain_s`."""
        if worker.runs:
            worker.deadline = None
            return
        worker.deadline = max(worker.idle_since, worker.outdated_at or 0.0) + agent.settings.drain_s
        if worker.deadline > now:
            self._deadlines.arm(worker, worker.deadline)
        else:
            self._orders.retire(agent, worker, None, now)

    def outdate(self, agent: Agent, worker: Worker, now: float) -> None:
        """Take the worker out of the pool: no run but its own sessions' comes to it any more."""
        if not worker.outdated:
            worker.outdated_at = now
            agent.outdated_runs += len(worker.runs)
            self._orders.leave_slot(agent, worker)
            agent.idle.discard(worker)

    def let_go(self, agent: Agent, now: float) -> None:
        """Outdated workers leave, but for those that stay for their sessions: as many as the pool may have, so that
        one deploy after another does not fill the machine. Who has not been heard yet may have some, and stays too."""
        outdated = [w for w in agent.workers.values() if w.outdated and not w.unheard]
        at_once = agent.current is not None and agent.current.at_once
        homes = [w for w in outdated if w.sessions and w.state is ProcessState.READY
                 and agent.settings.drain_s > 0 and (not at_once or w.template is agent.current)]
        staying = sorted(homes, key=loss)[-agent.settings.max_workers:]
        for worker in outdated:
            if worker in staying:
                self.linger(agent, worker, now)
            else:
                self._orders.retire(agent, worker, None, now)

    # What does not work

    def succeeded(self, agent: Agent, worker: Worker) -> None:
        """A worker has completed a run. An outdated one shows nothing of the version that serves now."""
        if not worker.outdated:
            worker.slot.succeeded()
            agent.record.clear()
            agent.pace.succeeded()
            if not agent.given_up:
                agent.previous = None

    def failed(self, agent: Agent, slot: Slot, reason: str, now: float) -> None:
        """A process of the current version has died unasked, or did not start. `reason` is "" when that follows from a
        failure that was told."""
        slot.failed(now, self._uniform)
        if agent.record.failed(now, reason):
            agent.pace.failed(now, self._uniform)
        if agent.state is not AgentState.ACTIVE or agent.given_up:
            return
        if agent.previous is not None and now <= agent.previous.until and len(agent.record) >= PROBATION_DEATHS:
            self._give_up(agent, agent.record.reason, now)
        elif agent.record.exhausted(now):
            self._quarantine(agent, now)

    def go_back(self, agent: Agent, now: float) -> None:
        """While the current version is given up: try the one of before, unless something is on trial already."""
        if agent.candidate is None and agent.previous is not None:
            version, settings, _ = agent.previous
            agent.candidate = self._orders.start_template(agent, version, settings, "", now)

    def release(self, agent: Agent) -> None:
        """The end of a quarantine: the agent may try again."""
        agent.move(AgentState.ACTIVE)
        agent.record.clear()
        for backoff in [agent.pace, agent.template_slot, *agent.slots]:
            backoff.not_before = 0.0

    def _give_up(self, agent: Agent, reason: str, now: float) -> None:
        """The current version gets no more runs: those that wait are better kept for the one of before."""
        agent.given_up = reason
        for worker in list(agent.workers.values()):
            if not worker.outdated and worker.template is not agent.candidate:
                self._orders.retire(agent, worker, None, now)

    def _quarantine(self, agent: Agent, now: float) -> None:
        agent.given_up, agent.previous = "", None
        agent.move(AgentState.QUARANTINED)
        agent.quarantined_until = now + QUARANTINE_S
        self._deadlines.arm(agent, agent.quarantined_until)

    def _drop(self, agent: Agent, template: Template, now: float) -> None:
        """End the trial of the candidate, and the candidate with it."""
        agent.candidate = None
        agent.trial_slot = Slot()
        for worker in [w for w in agent.workers.values() if w.template is template]:
            if worker.state is not ProcessState.KILLING:
                self._orders.kill(agent, worker, "its version was refused", now)
        if template.state is not ProcessState.EXITED:
            self._orders.kill_template(template, now)


def quarantine_message(agent: Agent) -> str:
    return (
        f"{agent.id} is refused for a while because its workers keep dying: {agent.record.reason}; `orpheusctl logs "
        f"{agent.id}` has what they said, and a deploy or a restart that works ends it at once")


def _previous(agent: Agent, template: Template, now: float) -> Previous | None:
    """What is gone back to if `template`, which somebody wants in place of the current version, does not work."""
    before = agent.current
    if before is None or agent.state is AgentState.QUARANTINED:
        return None
    if before.version == template.version:
        return agent.previous  # a restart is not another beginning
    if agent.given_up and agent.previous is not None:
        return agent.previous._replace(until=now + PROBATION_S)
    return Previous(before.version, before.settings, now + PROBATION_S)
