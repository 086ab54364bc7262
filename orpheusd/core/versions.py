"""Versions: one is tried, and is promoted or refused; one that keeps losing its workers is quarantined.

A deploy, a restart and a rollback are one mechanism: a template of the wanted version is started on trial,
forks one worker, and when that worker is ready the version is promoted and the old workers drain. What goes
wrong before that is the caller's answer and changes nothing.
"""

from collections.abc import Callable

from orpheusd.core.agent import Agent, AgentState, Settings
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.effects import Effect, VersionPromoted, VersionRefused
from orpheusd.core.orders import Orders
from orpheusd.core.restart import QUARANTINE_S, Slot
from orpheusd.core.worker import ProcessState, Worker


class Versions:
    """Decides which version of an agent serves. It starts no worker but the one on trial."""

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, orders: Orders, uniform: Callable[[], float]
    ) -> None:
        self._emit = emit
        self._deadlines = deadlines
        self._orders = orders
        self._uniform = uniform

    def stage(self, agent: Agent, version: int, settings: Settings, request: str, now: float) -> None:
        if agent.candidate is not None or agent.state is AgentState.REMOVED:
            why = "another deploy or restart of it is going on" if agent.candidate else "it is being removed"
            self._emit(VersionRefused(agent.id, version, request, f"cannot change {agent.id} now: {why}; try again"))
            return
        agent.candidate = self._orders.start_template(agent, version, settings, request, now)

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
                self._orders.kill(agent, worker, "its version was refused", now)
        if template.state is not ProcessState.EXITED:
            self._orders.kill_template(template, now)

    def promote(self, agent: Agent, first: Worker, now: float) -> None:
        """The candidate's first worker is ready: its version serves from now on."""
        template = first.template
        request, template.request = template.request or "", None
        agent.current, agent.candidate = template, None
        agent.settings = template.settings
        self._deadlines.arm(agent, now)  # what is due by the new settings may be due earlier
        if agent.state is AgentState.QUARANTINED:
            agent.move(AgentState.ACTIVE)
        agent.record.clear()
        for worker in [w for w in agent.workers.values() if w is not first]:
            self._orders.retire(agent, worker, None, now)
        agent.slots, agent.vacant = [agent.trial_slot], []
        agent.trial_slot, agent.template_slot = Slot(), Slot()
        self._emit(VersionPromoted(agent.id, template.version, request))

    def failed(self, agent: Agent, slot: Slot, reason: str, now: float) -> None:
        """A process of the current version has died unasked, or did not start."""
        slot.failed(now, self._uniform)
        agent.record.failed(now, reason)
        if agent.record.exhausted(now) and agent.state is AgentState.ACTIVE:
            agent.move(AgentState.QUARANTINED)
            agent.quarantined_until = now + QUARANTINE_S
            self._deadlines.arm(agent, agent.quarantined_until)

    def release(self, agent: Agent) -> None:
        """The end of a quarantine: the agent may try again."""
        agent.move(AgentState.ACTIVE)
        agent.record.clear()
        for slot in [agent.template_slot, *agent.slots]:
            slot.not_before = 0.0


def quarantine_message(agent: Agent) -> str:
    return (
        f"{agent.id} is refused for a while because its workers keep dying: {agent.record.reason}; `orpheusctl logs "
        f"{agent.id}` has what they said, and a deploy that works ends it at once")
