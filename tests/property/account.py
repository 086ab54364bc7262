"""What an onlooker learns from the events of a story; `witness.py` adds what the effects tell."""

from collections.abc import Callable
from typing import Any

from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.pool import Policy
from orpheusd.core.restart import INTENSITY, ONE_CAUSE_S, PROBATION_DEATHS, QUARANTINE_S, WINDOW_S
from tests.property.records import AgentRecord, RunRecord, SessionRecord, TemplateRecord, WorkerRecord


class Account:
    """Invariant: it knows of every agent, process and run that has not come to its end, and of no other."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.agents: dict[str, AgentRecord] = {}
        self.templates: dict[str, TemplateRecord] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.runs: dict[str, RunRecord] = {}
        self.verdicts: dict[str, str | None] = {}
        self.stopping = False
        self.stopped = False
        self.ticked = 0.0
        self.event: ev.Event = ev.TimePassed()
        self.now = 0.0
        self.known = False
        self._hear: dict[type[Any], Callable[[Any], bool]] = {
            ev.AgentLoaded: self._agent_loaded, ev.VersionStaged: self._version_staged,
            ev.RemovalRequested: self._removal_requested, ev.ShutdownRequested: self._shutdown_requested,
            ev.TemplateReady: self._template_ready, ev.TemplateFailed: self._template_failed,
            ev.TemplateExited: self._template_exited,
            ev.WorkerReady: self._worker_ready, ev.WorkerFailed: self._worker_failed,
            ev.WorkerMisbehaved: self._worker_failed, ev.WorkerGrew: self._worker_grew,
            ev.WorkerExited: self._worker_exited,
            ev.RunRequested: self._run_requested, ev.RunEnded: self._run_ended,
            ev.CancelRequested: lambda event: event.run in self.runs,
            ev.SessionEndRequested: lambda event: True, ev.TimePassed: self._time_passed,
        }  # fmt: skip

    def hear(self, event: ev.Event, now: float) -> bool:
        """Whether the event concerns anybody who is still there."""
        self.event, self.now = event, now
        self.known = self._hear[type(event)](event)
        return self.known

    def open_workers(self, agent: str) -> list[WorkerRecord]:
        """Those that any run may go to."""
        workers = [worker for worker in self.workers.values() if worker.agent == agent and worker.open]
        return [worker for worker in workers if worker.outdated_at is None]

    def leaves_at(self, worker: WorkerRecord) -> float | None:
        """When an outdated worker has had no run for long enough; None while it has one."""
        if worker.runs or worker.outdated_at is None:
            return None
        return max(worker.idle_since, worker.outdated_at) + self.agents[worker.agent].settings.drain_s

    def home_of(self, agent: AgentRecord, run: RunRecord) -> WorkerRecord | None:
        """The live home of the run's session."""
        session = agent.session_of(run)
        return self.workers.get(session.home) if session is not None else None

    def silent_home(self, session: SessionRecord) -> bool:
        """Whether the session may live on a worker that nobody has heard since the last daemon died."""
        return session.home in self.workers and self.workers[session.home].silent

    def impatient_at(self, agent: AgentRecord, run: RunRecord, latest: bool = False) -> float:
        """When a soft run, the head of its lane, need not wait for its home any longer.

        A version may have changed the patience meanwhile, so there is an earliest and a latest time.
        """
        session = agent.session_of(run)
        since = run.queued_at if session is None else max(run.queued_at, session.home_at, session.unparked_at)
        return since + (max(agent.patiences) if latest else min(agent.patiences))

    def may_roam(self, agent: AgentRecord, run: RunRecord) -> bool:
        """Whether a head has waited for its home long enough, and the core has been told so."""
        until = self.impatient_at(agent, run, latest=True)
        return run.roams and until <= self.ticked and until - max(agent.patiences) < self.ticked

    def too_full(self, agent: AgentRecord, run: RunRecord) -> bool:
        """Whether as many others wait as may, or more of their inputs than leaves room for that of the run: those of
        its own agent count twice, for it may have as much as is left for all."""
        held = sum(other.input_bytes for each in (agent, *self.agents.values()) for other in each.waiting.values()
                   if other is not run)
        others = len(agent.waiting) - (run.id in agent.waiting)
        return others >= agent.settings.queue_size or held + run.input_bytes > self.policy.waiting_bytes

    def processes_of(self, agent: AgentRecord) -> list[str]:
        processes: list[WorkerRecord | TemplateRecord] = [*self.workers.values(), *self.templates.values()]
        return [process.id for process in processes if process.agent == agent.id]

    # Events

    def _agent_loaded(self, event: ev.AgentLoaded) -> bool:
        if event.agent in self.agents or self.stopping:
            return False
        self._new_agent(event.agent, event.settings)
        for seen in event.sessions:
            record = SessionRecord("", 0.0, self.now - seen.idle_s, turns=seen.turns)
            self.agents[event.agent].sessions[seen.id] = record
        return True

    def _version_staged(self, event: ev.VersionStaged) -> bool:
        self.verdicts[event.request] = None
        if event.agent not in self.agents and not self.stopping:
            self._new_agent(event.agent, event.settings)
        elif not self.stopping:
            self._drop_rollback(self.agents[event.agent])
        return True

    def _new_agent(self, name: str, settings: Settings) -> None:
        self.agents[name] = AgentRecord(name, settings, patiences=[settings.patience_s])

    def _removal_requested(self, event: ev.RemovalRequested) -> bool:
        agent = self.agents.get(event.agent)
        if agent is None or agent.removal is not None:
            return False
        agent.removal = event.request
        self._drop_rollback(agent)
        agent.given_up, agent.previous = False, None
        self._retire(self._workers_of(agent), self.now + self.policy.drain_s)
        return True

    def _shutdown_requested(self, event: ev.ShutdownRequested) -> bool:
        known, self.stopping = not self.stopping, True
        if known:
            for agent in self.agents.values():
                self._drop_rollback(agent)
                agent.given_up, agent.previous = False, None
            self._retire(list(self.workers.values()), self.now + self.policy.drain_s)
        return known

    def _template_ready(self, event: ev.TemplateReady) -> bool:
        template = self.templates.get(event.template)
        if template is not None and template.state == "starting":
            template.state, template.deadline = "ready", None
        return template is not None

    def _template_failed(self, event: ev.TemplateFailed) -> bool:
        template = self.templates.get(event.template)
        if template is not None and template.state == "starting":
            self.template_failed(template)
        return template is not None

    def _template_exited(self, event: ev.TemplateExited) -> bool:
        template = self.templates.pop(event.template, None)
        if template is not None and template.state in ("starting", "ready"):
            self.template_failed(template)
        return template is not None

    def template_failed(self, template: TemplateRecord) -> None:
        agent = self.agents[template.agent]
        if template.id == agent.current and not template.silent:
            self._failed(agent)
        elif template.id == agent.candidate and not agent.candidate_request:
            self._rollback_failed(agent)

    def _worker_ready(self, event: ev.WorkerReady) -> bool:
        worker = self.workers.get(event.worker)
        if worker is not None and worker.state == "starting":
            worker.state, worker.deadline, worker.idle_since = "ready", None, self.now
        return worker is not None

    def _worker_failed(self, event: ev.WorkerFailed | ev.WorkerMisbehaved) -> bool:
        worker = self.workers.get(event.worker)
        if worker is not None and not worker.doomed:
            worker.blamed = True
        return worker is not None

    def _worker_grew(self, event: ev.WorkerGrew) -> bool:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.grown = True
        return worker is not None

    def _worker_exited(self, event: ev.WorkerExited) -> bool:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return False
        agent = self.agents[worker.agent]
        unasked = worker.state in ("starting", "ready") and not worker.leaving
        if worker.template == agent.candidate:
            if not agent.candidate_request:
                self._rollback_failed(agent)
        elif (worker.blamed or unasked) and worker.outdated_at is None and (worker.served or not worker.adopted):
            self._failed(agent)
        back = {run.id: run for run in worker.runs.values() if run.id in event.undelivered and not run.stopping}
        for run in back.values():
            self._take_back(agent, worker, run)
        agent.waiting = {**back, **agent.waiting}
        for run in list(worker.runs.values()):
            self._leave(worker, run)
        return True

    def _take_back(self, agent: AgentRecord, worker: WorkerRecord, run: RunRecord) -> None:
        """The run never began: it is as if it had not been handed over."""
        del worker.runs[run.id]
        session = agent.session_of(run)
        if session is not None and run.session is not None:
            del session.running[run.id]
            if not session.turns and not session.running:
                del agent.sessions[run.session]
        run.state, run.worker, run.context, run.standing = "waiting", None, None, None

    def _failed(self, agent: AgentRecord) -> None:
        """Something of the agent has died, and it is the agent's own fault."""
        if not agent.failures or self.now - agent.failures[-1] >= ONE_CAUSE_S:
            agent.failures = [*agent.failures, self.now][-INTENSITY:]
        often = len(agent.failures) == INTENSITY and self.now - agent.failures[0] <= WINDOW_S
        if agent.quarantined_until is not None or agent.given_up:
            return
        young = agent.previous is not None and self.now <= agent.previous.until
        if young and len(agent.failures) >= PROBATION_DEATHS:
            agent.given_up = True
            self._retire([w for w in self._workers_of(agent)
                          if w.outdated_at is None and w.template != agent.candidate], None)
        elif often:
            self._quarantine(agent)

    def _quarantine(self, agent: AgentRecord) -> None:
        agent.given_up, agent.previous = False, None
        agent.quarantined_until = self.now + QUARANTINE_S

    def _rollback_failed(self, agent: AgentRecord) -> None:
        """The version of before, that was to take over again by itself, does not start."""
        self._drop_rollback(agent)
        if agent.given_up:
            self._quarantine(agent)

    def _drop_rollback(self, agent: AgentRecord) -> None:
        """If the candidate is the version of before, it is not wanted any more."""
        if agent.candidate is None or agent.candidate_request:
            return
        template, agent.candidate = agent.candidate, None
        self._retire([w for w in self._workers_of(agent) if w.template == template], None)
        if template in self.templates:
            self.templates[template].deadline = self.now

    def _run_requested(self, event: ev.RunRequested) -> bool:
        if event.run in self.runs:
            return False
        agent = self.agents.get(event.agent)
        settings = agent.settings if agent is not None else Settings()
        run = self.runs[event.run] = RunRecord(
            event.run, event.agent, event.session, (event.affinity or settings.affinity) == "strict",
            event.overlap or settings.overlap, event.require_warm, event.timeout_s or settings.timeout_s,
            self.now, self.now + settings.queue_timeout_s, input_bytes=event.input_bytes)
        if agent is not None:
            agent.waiting[run.id] = run
        return True

    def _run_ended(self, event: ev.RunEnded) -> bool:
        run = self.runs.get(event.run)
        worker = self.workers.get(event.worker)
        if run is None or worker is None or run.id not in worker.runs:
            return False
        run.reported = (event.state, event.code)
        if event.restored and run.context == "lost":
            run.context = "restored"
        agent = self.agents[run.agent]
        session = agent.session_of(run)
        if event.saved and session is not None and run.id in session.running:
            session.saved = True
        self._leave(worker, run)
        worker.served += 1
        if event.state == "completed" and worker.outdated_at is None:
            agent.failures.clear()
            if not agent.given_up:
                agent.previous = None
        return True

    def _leave(self, worker: WorkerRecord, run: RunRecord) -> None:
        del worker.runs[run.id]
        worker.idle_since = self.now
        run.state = "ended"
        agent = self.agents[run.agent]
        session = agent.session_of(run)
        if session is not None and run.id in session.running:
            del session.running[run.id]
            if any(head.session == run.session and head.exclusive for head in agent.heads()):
                session.unparked_at = self.now
            session.turns += 1
            session.last_used = self.now

    def _time_passed(self, event: ev.TimePassed) -> bool:
        self.ticked = self.now
        for agent in self.agents.values():
            if agent.quarantined_until is not None and agent.quarantined_until <= self.now:
                agent.quarantined_until = None
                agent.failures.clear()
        return True

    def _retire(self, workers: list[WorkerRecord], drain_deadline: float | None) -> None:
        for worker in workers:
            worker.leaving = True
            if drain_deadline is not None and worker.runs:
                worker.drain_deadline = drain_deadline

    def _workers_of(self, agent: AgentRecord) -> list[WorkerRecord]:
        return [worker for worker in self.workers.values() if worker.agent == agent.id]
