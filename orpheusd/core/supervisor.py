"""The supervisor: the pure state machine that decides everything.

Events go in, effects come out. It owns no process, socket or clock; time is an argument, ids and randomness
come from the constructor. After each event it settles what is against what is wanted, so the order of
events matters little. Reading order: events, effects, worker, run, sessions, routing, pool, this file.
"""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from orpheusd.core import events as ev
from orpheusd.core.agent import Agent, AgentState, Settings
from orpheusd.core.deadlines import Deadlines
from orpheusd.core.effects import Effect, Stopped, VersionRefused
from orpheusd.core.lanes import Lane
from orpheusd.core.lifecycle import IllegalMove
from orpheusd.core.pool import Policy, Pool
from orpheusd.core.routing import Router
from orpheusd.core.run import Run, RunState
from orpheusd.core.versions import quarantine_message
from orpheusd.core.worker import ProcessState, Template, Worker

#: How many events an IllegalMove looks back on.
STORY_LENGTH = 500

_RUN_STATE = {state.value: state for state in RunState}


class Supervisor:
    """Decides, for all agents. Invariant: see `orpheusd.core.invariants.check`.

    `uniform` returns a number from 0 to 1 each time it is called; only restart delays use it. `free_mb` tells what
    memory the box has left.
    """

    def __init__(
        self, boot_id: str, policy: Policy, uniform: Callable[[], float], free_mb: Callable[[], float] = lambda: inf
    ) -> None:
        self.agents: dict[str, Agent] = {}
        self.stopping = False
        self.ignored = 0
        self.deadlines = Deadlines()
        self._effects: list[Effect] = []
        self._story: deque[tuple[float, ev.Event]] = deque(maxlen=STORY_LENGTH)
        self.router = Router(self._emit, self.deadlines, policy.grace_s, policy.waiting_bytes)
        self.runs = self.router.runs
        self.pool = Pool(self._emit, self.deadlines, self.router, policy, boot_id, uniform, free_mb)
        pool = self.pool
        self._handlers: dict[type[Any], Callable[[Any, float], Agent | None]] = {
            ev.RunRequested: self._run_requested,
            ev.RunEnded: self._run_ended,
            ev.CancelRequested: self._cancel_requested,
            ev.SessionEndRequested: self._session_end_requested,
            ev.WorkerReady: self._of_worker(
                lambda agent, worker, _event, now: pool.worker_ready(agent, worker, now)),
            ev.WorkerFailed: self._of_worker(
                lambda agent, worker, event, now: pool.worker_failed(agent, worker, event.message, now)),
            ev.WorkerMisbehaved: self._of_worker(
                lambda agent, worker, event, now: pool.worker_failed(
                agent, worker, f"protocol violation: {event.detail}", now)),
            ev.WorkerGrew: self._of_worker(
                lambda agent, worker, event, now: pool.worker_grew(agent, worker, event.memory_mb, now)),
            ev.WorkerExited: self._of_worker(
                lambda agent, worker, event, now: pool.worker_exited(
                agent, worker, event.cause, event.undelivered, now)),
            ev.TemplateReady: self._template_ready,
            ev.TemplateFailed: self._template_failed,
            ev.TemplateExited: self._template_exited,
            ev.AgentLoaded: self._agent_loaded,
            ev.TemplateAdopted: self._template_adopted,
            ev.WorkerAdopted: self._of_worker(pool.adopter.worker_adopted),
            ev.VersionStaged: self._version_staged,
            ev.RemovalRequested: self._removal_requested,
            ev.ShutdownRequested: self._shutdown_requested,
            ev.TimePassed: self._time_passed,
        }

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Everything that is to be done because of `event`, in order. `now` is monotonic seconds."""
        self._story.append((now, event))
        try:
            agent = self._handlers[type(event)](event, now)
            if agent is not None:
                self._settle(agent, now)
        except IllegalMove as error:
            raise AssertionError(f"{error}\n{self._story_of(error.subject)}") from error
        effects = self._effects[:]
        self._effects.clear()
        return effects

    @property
    def adopts(self) -> bool:
        """Whether an agent waits for the word of those who outlived an earlier daemon."""
        return any(agent.adoption is not None for agent in self.agents.values())

    def next_deadline(self) -> float | None:
        """When TimePassed is due, at the latest; None while nothing waits for time."""
        return self.deadlines.next()

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _settle(self, agent: Agent, now: float) -> None:
        adoption = agent.adoption
        if adoption is not None and adoption.complete(now):
            self.pool.adopter.over(agent, now)
            self._end_old_sessions(agent, now)
        if agent.unwanted or self.stopping:
            if self.pool.farewell(agent, now) and self.agents.get(agent.id) is agent:
                del self.agents[agent.id]
                self.deadlines.forget(agent)
            if self.stopping and not self.agents:
                self._emit(Stopped())
        else:
            self.pool.settle(agent, now)
        if len(agent.sessions) > agent.settings.session_max and agent.adoption is None:
            self.router.evict(agent, now)

    # Runs

    def _run_requested(self, event: ev.RunRequested, now: float) -> Agent | None:
        if event.run in self.runs:
            self.ignored += 1
            return None
        agent = self.agents.get(event.agent)
        settings = agent.settings if agent is not None else None
        run = Run(
            event.run, event.agent, event.session,
            event.affinity or (settings.affinity if settings else ""),
            event.overlap or (settings.overlap if settings else ""),
            event.require_warm,
            event.timeout_s or (settings.timeout_s if settings else 0.0),
            settings.queue_timeout_s if settings else 0.0, now, event.readmitted, event.input_bytes)  # fmt: skip
        if agent is None or agent.current is None or agent.state is not AgentState.ACTIVE or self.stopping:
            self._refuse_run(agent, run, now)
            return None
        self.router.submit(agent, run, now)
        return agent

    def _refuse_run(self, agent: Agent | None, run: Run, now: float) -> None:
        if self.stopping:
            self.router.resolve(agent or Agent(run.agent, _NOBODY), run, RunState.REJECTED, "draining",
                                "the daemon is stopping; try again when it is back", now)
        elif agent is None or (agent.candidate is not None and agent.current is None):
            stranger = Agent(run.agent, _NOBODY)
            self.router.resolve(stranger, run, RunState.REJECTED, "not-found", f"there is no agent {run.agent}; "
                                "`orpheusctl list` shows those there are", now)
        elif agent.state is AgentState.QUARANTINED:
            self.router.resolve(agent, run, RunState.REJECTED, "quarantined", quarantine_message(agent), now)
        else:
            self.router.resolve(agent, run, RunState.REJECTED, "draining", f"{agent.id} is being removed", now)

    def _run_ended(self, event: ev.RunEnded, now: float) -> Agent | None:
        run = self.runs.get(event.run)
        worker = self.pool.workers.get(event.worker)
        if run is None or worker is None or run.worker is not worker or run.state is not RunState.STARTED:
            self.ignored += 1
            return None
        agent = self.agents[run.agent]
        self.router.ended(agent, run, now)
        if event.restored and run.context == "lost":
            run.context = "restored"
        if event.saved and run.session is not None and run.entry is not None:
            agent.sessions.mark_saved(run.session, run.entry)
        state = _RUN_STATE[event.state]
        self.router.resolve(agent, run, state, event.code, "", now)
        self.pool.run_ended(agent, worker, state is RunState.COMPLETED, now)
        return agent

    def _cancel_requested(self, event: ev.CancelRequested, now: float) -> Agent | None:
        run = self.runs.get(event.run)
        if run is None:
            self.ignored += 1
            return None
        agent = self.agents[run.agent]
        if run.state is RunState.QUEUED:
            self.router.withdraw(agent, run, RunState.CANCELLED, "cancelled", "cancelled while it was waiting", now)
        else:
            self.router.stop(run, "cancelled", now)
        return agent

    def _session_end_requested(self, event: ev.SessionEndRequested, now: float) -> Agent | None:
        agent = self.agents.get(event.agent)
        session = agent.sessions.get(event.session) if agent is not None else None
        if (agent is None or session is None or agent.adoption is not None or session.unheard or session.running
                or event.session in agent.lanes):
            self.ignored += 1
            return None
        self.router.end_session(agent, event.session, "ended")
        return agent

    # Processes

    def _of_worker(
        self, handle: Callable[[Agent, Worker, Any, float], None]
    ) -> Callable[[Any, float], Agent | None]:
        """What is done at an event about a worker: nothing when that is gone."""

        def handler(event: Any, now: float) -> Agent | None:
            worker = self._living(event.worker)
            if worker is None:
                return None
            agent = self.agents[worker.agent]
            handle(agent, worker, event, now)
            return agent

        return handler

    def _template_ready(self, event: ev.TemplateReady, now: float) -> Agent | None:
        template, agent = self._template(event.template)
        if template is not None and agent is not None:
            self.pool.template_ready(agent, template, now)
        return agent

    def _template_failed(self, event: ev.TemplateFailed, now: float) -> Agent | None:
        template, agent = self._template(event.template)
        if template is not None and agent is not None:
            self.pool.template_failed(agent, template, event.message, now)
        return agent

    def _template_exited(self, event: ev.TemplateExited, now: float) -> Agent | None:
        template, agent = self._template(event.template)
        if template is not None and agent is not None:
            self.pool.template_exited(agent, template, event.cause, now)
        return agent

    # Agents

    def _agent_loaded(self, event: ev.AgentLoaded, now: float) -> Agent | None:
        if event.agent in self.agents or self.stopping:
            self.ignored += 1
            return None
        agent = self.agents[event.agent] = Agent(event.agent, event.settings)
        for seen in event.sessions:
            agent.sessions.remember(seen.id, seen.turns, now - seen.idle_s)
        self.deadlines.arm(agent, now)
        self.pool.adopter.begin(agent, event, now)
        if agent.current is None:
            self.pool.load(agent, event.version, now)
        return agent

    def _template_adopted(self, event: ev.TemplateAdopted, now: float) -> Agent | None:
        template, agent = self._template(event.template)
        if template is not None and agent is not None:
            self.pool.adopter.template_adopted(agent, template, event, now)
        return agent

    def _version_staged(self, event: ev.VersionStaged, now: float) -> Agent | None:
        if self.stopping:
            self._emit(VersionRefused(event.agent, event.version, event.request,
                                      f"cannot change {event.agent} now: the daemon is stopping"))
            return None
        agent = self.agents.get(event.agent)
        if agent is None:
            agent = self.agents[event.agent] = Agent(event.agent, event.settings)
        self.pool.versions.stage(agent, event.version, event.settings, event.request, event.at_once, now)
        return agent

    def _removal_requested(self, event: ev.RemovalRequested, now: float) -> Agent | None:
        agent = self.agents.get(event.agent)
        if agent is None or agent.state is AgentState.REMOVED:
            self.ignored += 1
            return None
        self.pool.wind_down(agent, "being removed", now)
        agent.move(AgentState.REMOVED)
        agent.removal_request = event.request
        return agent

    def _shutdown_requested(self, event: ev.ShutdownRequested, now: float) -> Agent | None:
        if self.stopping:
            self.ignored += 1
            return None
        self.stopping = True
        agents = list(self.agents.values())
        for agent in agents:
            self.pool.wind_down(agent, "stopping with the daemon", now)
        for agent in agents[1:]:
            self._settle(agent, now)
        if not agents:
            self._emit(Stopped())
            return None
        return agents[0]

    # Time

    def _time_passed(self, event: ev.TimePassed, now: float) -> Agent | None:
        for owner in self.deadlines.due(now):
            agent = self._owner_due(owner, now)
            if agent is not None:
                self._settle(agent, now)
        return None

    def _owner_due(self, owner: object, now: float) -> Agent | None:
        if isinstance(owner, Agent):
            self._agent_due(owner, now)
            return owner
        if isinstance(owner, Lane):
            self.router.patience_over(owner, now)
            return owner.agent
        if isinstance(owner, Worker):
            agent = self.agents[owner.agent]
            self.pool.worker_due(agent, owner, now)
            return agent
        if isinstance(owner, Template):
            agent = self.agents[owner.agent]
            self.pool.template_due(agent, owner, now)
            return agent
        return None

    def _agent_due(self, agent: Agent, now: float) -> None:
        """An agent's wake-up: runs that waited too long, sessions unused too long, a quarantine over."""
        if agent.state is AgentState.REMOVED:
            return
        # the last first, so that none of them takes the place of another meanwhile
        for run in [run for run in reversed(agent.waiting.values()) if run.queue_deadline <= now]:
            self.router.withdraw(agent, run, RunState.EXPIRED, "timed-out",
                                 f"no worker was free for it within {now - run.queued_at:.3g} s", now)
        if agent.waiting:
            self.deadlines.arm(agent, min(run.queue_deadline for run in agent.waiting.values()))
        if agent.adoption is None:
            self._end_old_sessions(agent, now)
        elif agent.adoption.deadline > now:
            self.deadlines.arm(agent, agent.adoption.deadline)
        if agent.state is AgentState.QUARANTINED:
            if agent.quarantined_until <= now:
                self.pool.versions.release(agent)
            else:
                self.deadlines.arm(agent, agent.quarantined_until)

    def _end_old_sessions(self, agent: Agent, now: float) -> None:
        """Not while the agent adopts: their homes may not hear of it."""
        ttl_s = agent.settings.session_ttl_s
        for id in agent.sessions.expired(ttl_s, now, agent.lanes):
            self.router.end_session(agent, id, "ttl")
        expiry = agent.sessions.next_expiry(ttl_s, now, agent.lanes)
        if expiry is not None:
            self.deadlines.arm(agent, expiry)

    # Small things

    def _living(self, id: str) -> Worker | None:
        worker = self.pool.workers.get(id)
        if worker is None or worker.state is ProcessState.EXITED:
            self.ignored += 1
            return None
        return worker

    def _template(self, id: str) -> tuple[Template | None, Agent | None]:
        template = self.pool.templates.get(id)
        if template is None:
            self.ignored += 1
            return None, None
        return template, self.agents[template.agent]

    def _story_of(self, subject: str) -> str:
        """The last events that name `subject`, for whoever has to find out how it came to this."""
        return "\n".join(f"  {now:.6f} {event}" for now, event in self._story if subject in event)


_NOBODY = Settings()
