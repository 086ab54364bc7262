"""An onlooker who believes nothing: it follows a story by events and effects, and holds each effect against the rules.

Its account is its own (records.py); `laws.py` holds what must be true between two events.
"""

from collections.abc import Callable
from typing import Any

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.orders import ABORT_S, KILL_RETRY_S
from orpheusd.core.pool import Policy
from orpheusd.core.restart import PROBATION_S
from tests.property.adopted import Adopted
from tests.property.records import (
    AgentRecord,
    PreviousRecord,
    RunRecord,
    SessionRecord,
    TemplateRecord,
    WorkerRecord,
    hold,
)


class Witness(Adopted):
    """Invariant: that of the account of what it has heard."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.effects: list[ef.Effect] = []
        self._see: dict[type[Any], Callable[[Any], None]] = {
            ef.StartTemplate: self._start_template, ef.StopTemplate: self._stop_template,
            ef.KillTemplate: self._kill_template, ef.ForkWorker: self._fork_worker, ef.StopWorker: self._stop_worker,
            ef.AbortWorker: self._abort_worker, ef.KillWorker: self._kill_worker, ef.Dispatch: self._dispatch,
            ef.CancelRun: self._cancel_run, ef.EndSession: self._end_session, ef.Resolve: self._resolve,
            ef.VersionPromoted: self._version_promoted, ef.VersionRefused: self._version_refused,
            ef.RolledBack: self._rolled_back, ef.Recycled: self._recycled,
            ef.AgentRemoved: self._agent_removed, ef.Stopped: self._stop,
        }  # fmt: skip

    def saw(self, event: ev.Event, effects: list[ef.Effect], now: float, adopting: set[str]) -> None:
        """One step of the story. Raises BrokenPromise when an effect is not one that may follow.

        `adopting` are the agents that wait for those who outlived an earlier daemon, by the core's own account.
        """
        known = self.hear(event, now)
        self.effects = effects
        hold(not self.stopped or all(isinstance(effect, ef.Resolve | ef.VersionRefused) for effect in effects),
             "something is ordered after Stopped")
        hold(known or not effects, f"{event} concerns nobody, and leads to {effects}")
        for effect in effects:
            self._foresee(effect)
        self.adoptions(adopting)
        if known and isinstance(event, ev.RunRequested):
            self._check_admission(self.runs[event.run], effects)
        for effect in effects:
            self._see[type(effect)](effect)
        for agent in [agent for agent in self.agents.values() if self.stopping or not agent.exists]:
            if agent.removal is None and not self.processes_of(agent):
                del self.agents[agent.id]

    def _check_admission(self, run: RunRecord, effects: list[ef.Effect]) -> None:
        """What must be refused at once is refused at once."""
        agent = self.agents.get(run.agent)
        session = agent.session_of(run) if agent is not None else None
        others = agent.waiting.values() if agent is not None else ()
        waits = any(other is not run and other.lane == run.lane for other in others)
        busy = waits or (session is not None and bool(session.running))
        closed = agent is None or not agent.exists or agent.removal is not None or agent.quarantined_until is not None
        if self.stopping or closed or (busy and run.overlap == "reject"):
            refused = any(isinstance(effect, ef.Resolve) and effect.run == run.id for effect in effects)
            hold(refused, f"{run.id} is accepted, and must not be")

    def _foresee(self, effect: ef.Effect) -> None:
        """What an effect says about the whole step, wherever in the step it stands."""
        if isinstance(effect, ef.VersionPromoted):
            agent = self.agents[effect.agent]
            template = agent.candidate or ""
            hold(effect.request and agent.candidate_request == effect.request,
                 f"{effect} does not answer {agent.candidate_request}")
            agent.previous = self._previous(agent, self.templates[template])
            self._promote(agent, self.templates[template])
        elif isinstance(effect, ef.RolledBack):
            agent = self.agents[effect.agent]
            template = agent.candidate or ""
            hold(agent.given_up and template and not agent.candidate_request, f"{effect}, and nothing was given up")
            versions = self.templates[template].version, agent.version
            hold(versions == (effect.version, effect.failed), f"{effect}, and it is {versions}")
            agent.previous = None
            self._promote(agent, self.templates[template])
        elif isinstance(effect, ef.VersionRefused):
            agent_or_none = self.agents.get(effect.agent)
            if agent_or_none is not None and agent_or_none.candidate_request == effect.request:
                template = agent_or_none.candidate or ""
                agent_or_none.candidate, agent_or_none.candidate_request = None, ""
                self._retire([w for w in self.workers.values() if w.template == template], None)
                if template in self.templates:
                    self.templates[template].deadline = self.now
        elif isinstance(effect, ef.Resolve):
            hold(effect.run in self.runs, f"{effect} of a run that is over, or never was")
            run = self.runs[effect.run]
            if run.state != "started":
                return
            worker = self.workers[run.worker or ""]
            hold(worker.state == "killed" and worker.deadline is not None and worker.deadline <= self.now,
                 f"{effect} though {worker.id} still has the run")
            self._leave(worker, run)

    def _recycled(self, effect: ef.Recycled) -> None:
        """One worker may leave the pool because it is worn: nobody else of it may be missing."""
        worker = self.workers[effect.worker]
        agent = self.agents[worker.agent]
        worn = 0 < agent.settings.recycle_runs <= worker.served or (agent.settings.recycle_mb and worker.grown)
        hold(worn and worker.outdated_at is None, f"{effect} though it is not worn")
        pool = [w for w in self._workers_of(agent) if w.outdated_at is None and not w.leaving]
        ready = all(w.state == "ready" for w in pool) and self.templates[agent.current or ""].state == "ready"
        hold(ready, f"{effect} while another of {agent.id} is not ready")
        hold(agent.candidate is None and not agent.given_up, f"{effect} while {agent.id} changes its version")
        worker.outdated_at = self.now
        self.let_go(agent)

    def _previous(self, agent: AgentRecord, template: TemplateRecord) -> PreviousRecord | None:
        """What may be gone back to once `template` serves."""
        if agent.current is None or agent.quarantined_until is not None:
            return None
        if agent.version == template.version:
            return agent.previous
        until = self.now + PROBATION_S
        if agent.given_up and agent.previous is not None:
            return PreviousRecord(agent.previous.version, agent.previous.settings, until)
        return PreviousRecord(agent.version, agent.settings, until)

    def _promote(self, agent: AgentRecord, template: TemplateRecord) -> None:
        agent.current, agent.candidate, agent.candidate_request = template.id, None, ""
        agent.version, agent.settings = template.version, template.settings
        agent.patiences.append(agent.settings.patience_s)
        agent.failures.clear()
        agent.quarantined_until, agent.given_up = None, False
        old = [worker for worker in self._workers_of(agent) if worker.template != template.id]
        for worker in old:
            worker.outdated_at = self.now if worker.outdated_at is None else worker.outdated_at
        self.let_go(agent)

    def _start_template(self, effect: ef.StartTemplate) -> None:
        agent = self.agents[effect.agent]
        hold(not self.stopping and agent.removal is None, f"{effect} for an agent that is going")
        version, settings, at_once = agent.version, agent.settings, False
        event = self.event
        if isinstance(event, ev.VersionStaged) and event.agent == agent.id and agent.candidate is None:
            version, settings, at_once = event.version, event.settings, event.at_once
            agent.candidate, agent.candidate_request = effect.template, event.request
        elif agent.given_up and agent.candidate is None and agent.previous is not None:
            version, settings = agent.previous.version, agent.previous.settings
            agent.candidate, agent.candidate_request = effect.template, ""
        elif isinstance(event, ev.AgentLoaded):
            hold(agent.current is None, f"{effect} though {agent.current} may be there")
            agent.current = effect.template
        else:
            hold(not agent.given_up, f"{effect} though its version is given up")
            hold(agent.current not in self.templates or self.templates[agent.current].state == "killed",
                 f"{effect} though {agent.current} is well")
            agent.current = effect.template
        hold(effect.version == version, f"{effect}, and version {version} is wanted")
        self.templates[effect.template] = TemplateRecord(
            effect.template, effect.agent, version, settings, self.now + self.policy.start_timeout_s, at_once)

    def _stop_template(self, effect: ef.StopTemplate) -> None:
        template = self.templates[effect.template]
        left = [worker.id for worker in self.workers.values() if worker.template == template.id]
        hold(not left, f"{effect} though it has {left}")
        hold(template.state in ("starting", "ready"), f"{effect} though it is {template.state}")
        going = self.stopping or self.agents[template.agent].removal is not None
        hold(going or not template.silent, f"{effect} though nobody knows its workers yet")
        template.state, template.deadline = "stopping", self.now + self.policy.grace_s

    def _kill_template(self, effect: ef.KillTemplate) -> None:
        template = self.templates[effect.template]
        due = template.deadline is not None and template.deadline <= self.now
        failed = isinstance(self.event, ev.TemplateFailed) and self.event.template == template.id
        hold(due or failed, f"{effect} without a cause")
        if due and template.state == "starting":
            self.template_failed(template)
        template.state, template.deadline = "killed", self.now + KILL_RETRY_S

    def _fork_worker(self, effect: ef.ForkWorker) -> None:
        template = self.templates[effect.template]
        agent = self.agents[template.agent]
        hold(template.state == "ready", f"{effect} though the template is {template.state}")
        hold(template.id in (agent.current, agent.candidate), f"{effect} of a version that does not serve")
        hold(template.id == agent.candidate or not agent.given_up, f"{effect} of a version that is given up")
        self.workers[effect.worker] = WorkerRecord(
            effect.worker, agent.id, template.id, template.settings.concurrency,
            self.now + self.policy.start_timeout_s)

    def _stop_worker(self, effect: ef.StopWorker) -> None:
        worker = self.workers[effect.worker]
        agent = self.agents[worker.agent]
        hold(not worker.runs, f"{effect} though it has {list(worker.runs)}")
        hold(worker.state == "ready", f"{effect} though it is {worker.state}")
        if worker.lingers:
            at = self.leaves_at(worker)
            hold(at is not None and at <= self.now, f"{effect} at {self.now}, and its sessions have it until {at}")
        elif not worker.leaving:
            left = sum(1 for w in self._workers_of(agent)
                       if not w.leaving and not w.doomed and w.outdated_at is None) - 1
            hold(left >= agent.settings.min_workers, f"{effect} leaves {left} workers")
        worker.state, worker.leaving, worker.deadline = "stopping", True, self.now + self.policy.grace_s

    def _abort_worker(self, effect: ef.AbortWorker) -> None:
        worker = self.workers[effect.worker]
        disobeyed = any(run.kill_at is not None and run.kill_at <= self.now for run in worker.runs.values())
        hold(disobeyed, f"{effect} though none of its runs had to stop")
        # one that is starting and has runs outlived its daemon, and has not dialled again
        hold(worker.state in ("ready", "starting"), f"{effect} though it is {worker.state}")
        worker.state, worker.deadline, worker.drain_deadline = "aborted", self.now + ABORT_S, None
        worker.doomed_at = self.now

    def _kill_worker(self, effect: ef.KillWorker) -> None:
        worker = self.workers[effect.worker]
        event = self.event
        due = worker.deadline is not None and worker.deadline <= self.now
        failed = isinstance(event, ev.WorkerFailed | ev.WorkerMisbehaved) and event.worker == worker.id
        not_wanted = worker.state == "starting" and worker.leaving
        hold(due or failed or not_wanted, f"{effect} without a cause")
        if due and worker.state == "starting" and not worker.leaving:
            worker.blamed = True
        worker.state, worker.deadline, worker.drain_deadline = "killed", self.now + KILL_RETRY_S, None
        worker.doomed_at = self.now

    def _dispatch(self, effect: ef.Dispatch) -> None:
        run = self.runs[effect.run]
        worker = self.workers.get(effect.worker)
        agent = self.agents[run.agent]
        hold(run.state == "waiting", f"{effect} though the run is {run.state}")
        hold(worker is not None and worker.open and worker.agent == run.agent,
             f"{effect} though the worker may not have it")
        assert worker is not None
        first = next(other for other in agent.waiting.values() if other.lane == run.lane)
        hold(first is run, f"{effect} overtakes {first.id}")
        self._check_place(agent, run, worker, effect)
        del agent.waiting[run.id]
        self._count_overtaken(agent, run, worker)
        if run.session is not None:
            self._enter_session(agent, run, worker, effect)
        run.state, run.worker, run.context = "started", worker.id, effect.context
        run.deadline = self.now + run.timeout_s
        worker.runs[run.id] = run
        hold(effect.timeout_s == run.timeout_s, f"{effect} has another timeout than was asked for")

    def _check_place(self, agent: AgentRecord, run: RunRecord, worker: WorkerRecord, effect: ef.Dispatch) -> None:
        session, home = agent.session_of(run), self.home_of(agent, run)
        hold(worker.outdated_at is None or worker is home, f"{effect} though the worker is outdated and not its home")
        hold(not agent.blocks(run), f"{effect} overlaps with another, or its session may live elsewhere")
        busy = session is not None and session.running
        hold(not busy or run.overlap != "reject", f"{effect} overlaps with another, and was not to")
        if home is not None and worker is not home:
            hold(run.roams, f"{effect} may not leave {home.id}")
            hold(self.now >= self.impatient_at(agent, run), f"{effect} has not waited for {home.id}")
            others = [head for head in agent.heads() if head.lane != run.lane and self.home_of(agent, head) is home]
            hold(not home.open or others, f"{effect} leaves {home.id}, which has room")
        if session is not None and home is None:
            hold(not run.warm, f"{effect} though its memory is gone and must be warm")
        if home is None and isinstance(self.event, ev.RunRequested):
            fewest = min(self.sessions_on(agent, other) for other in self.open_workers(agent.id))
            hold(self.sessions_on(agent, worker) == fewest, f"{effect} though another worker has fewer sessions")

    def _count_overtaken(self, agent: AgentRecord, run: RunRecord, worker: WorkerRecord) -> None:
        """Each lane that could have been served instead notes who was."""
        for head in agent.heads():
            home = self.home_of(agent, head)
            blocked = agent.blocks(head)
            standing = (home.id if home is not None else None, blocked)
            if head.standing != standing:
                head.standing = standing
                head.overtaken_by.clear()
            anyone = worker.outdated_at is None and (home is None or self.may_roam(agent, head))
            if head.lane != run.lane and not blocked and (home is worker or anyone):
                head.overtaken_by[run.lane] += 1

    def _enter_session(self, agent: AgentRecord, run: RunRecord, worker: WorkerRecord, effect: ef.Dispatch) -> None:
        assert run.session is not None
        session = agent.sessions.get(run.session)
        if session is None:
            context = "new"
            session = agent.sessions[run.session] = SessionRecord(worker.id, self.now, self.now)
        elif session.home == worker.id:
            context = "warm"
        elif session.home in self.workers:
            context = "spilled"
        else:
            context = "lost"
            session.home, session.home_at = worker.id, self.now
        hold(effect.context == context, f"{effect} says {effect.context}, and it is {context}")
        # a late timer may find a patience over before it gives up a run of the same session
        late = isinstance(self.event, ev.TimePassed) and effect.turn <= session.turns
        hold(late or effect.turn == session.turns + 1, f"{effect} is turn {session.turns + 1}")
        session.running[run.id] = run
        session.last_used = self.now

    def _cancel_run(self, effect: ef.CancelRun) -> None:
        run = self.runs[effect.run]
        hold(run.state == "started" and run.worker == effect.worker, f"{effect} though it is {run.state}")
        hold(not run.stopping, f"{effect} though it was told to stop already")
        if effect.reason == "timed-out":
            hold(run.deadline <= self.now, f"{effect} too early")
        run.stopping, run.kill_at = effect.reason, self.now + self.policy.grace_s

    def _end_session(self, effect: ef.EndSession) -> None:
        session = self.agents[effect.agent].sessions.get(effect.session)
        hold(session is not None, f"{effect}, which is not known")
        assert session is not None
        home = session.home if session.home in self.workers else None
        hold(effect.worker == home, f"{effect}, and its home is {home}")

    def _resolve(self, effect: ef.Resolve) -> None:
        run = self.runs.pop(effect.run)
        agent = self.agents.get(run.agent)
        hold(effect.run not in self.answers, f"{effect.run} is answered twice")
        self.answers[effect.run] = effect
        where = (run.agent, run.worker, run.session, run.context)
        hold((effect.agent, effect.worker, effect.session, effect.context) == where, f"{effect} ran in {where}")
        hold(effect.duration_s >= 0, f"{effect} took less than no time")
        hold((effect.code == "") == (effect.state == "completed"), f"{effect} has the wrong code")
        if run.state == "ended":
            self._check_end(run, effect)
        else:
            self._check_refusal(agent, run, effect)
            if agent is not None:
                agent.waiting.pop(run.id, None)
                session = agent.session_of(run)
                held = not isinstance(self.event, ev.RunRequested) or self.event.run != run.id
                if session is not None and held and run.session is not None and not agent.waits(run.session):
                    session.last_used = self.now
        run.state = "resolved"

    def _check_end(self, run: RunRecord, effect: ef.Resolve) -> None:
        if run.reported is not None:
            hold((effect.state, effect.code) == run.reported, f"{effect} is not what its worker said")
        elif run.stopping:
            hold(effect.state == run.stopping, f"{effect} though it was {run.stopping}")
        else:
            hold((effect.state, effect.code) == ("crashed", "worker-crashed"), f"{effect} though its worker died")

    def _check_refusal(self, agent: AgentRecord | None, run: RunRecord, effect: ef.Resolve) -> None:
        event = self.event
        others = [other for other in agent.waiting.values() if other is not run] if agent is not None else []
        mates = [other for other in others if run.session is not None and other.session == run.session]
        session = agent.session_of(run) if agent is not None else None
        settled = isinstance(event, ev.WorkerAdopted) or (agent is not None and agent.settled_at == self.now)
        asked_now = isinstance(event, ev.RunRequested) and event.run == run.id
        interrupted = isinstance(event, ev.RunRequested) and event.run != run.id and run.session is not None \
            and event.session == run.session and self.runs[event.run].overlap == "interrupt"
        going = self.stopping or (agent is not None and agent.removal is not None)
        reasons = {
            ("cancelled", "cancelled"): interrupted or (isinstance(event, ev.CancelRequested) and event.run == run.id),
            ("expired", "timed-out"): isinstance(event, ev.TimePassed) and run.queue_deadline <= self.now,
            ("rejected", "not-found"): agent is None or agent.current is None,
            ("rejected", "draining"): going or (agent is not None and not agent.exists),
            ("rejected", "quarantined"):
                agent is not None and agent.quarantined_until is not None,
            ("rejected", "session-busy"):
                (asked_now or settled) and run.overlap == "reject" and bool(mates or (session and session.running)),
            ("rejected", "overloaded"):
                asked_now and agent is not None and self.too_full(agent, run),
            ("rejected", "session-queue-full"):
                asked_now and agent is not None and len(mates) >= agent.settings.session_queue_size,
            ("rejected", "context-not-warm"):
                run.warm and session is not None and session.home not in self.workers
                and agent is not None and agent.adoption is None,
        }  # fmt: skip
        hold(reasons.get((effect.state, effect.code)), f"{effect} without a cause")
        if asked_now:
            changed = [other for other in self.effects if isinstance(other, ef.CancelRun | ef.Resolve | ef.Dispatch)]
            hold(changed == [effect], f"{effect} is refused, and changes {changed}")

    def _version_promoted(self, effect: ef.VersionPromoted) -> None:
        hold(self.verdicts.get(effect.request, "") is None, f"{effect} answers nothing")
        self.verdicts[effect.request] = "promoted"
        ready = [w for w in self.workers.values() if w.template == self.agents[effect.agent].current and w.open]
        hold(ready, f"{effect} though none of its workers is ready")

    def _rolled_back(self, effect: ef.RolledBack) -> None:
        ready = [w for w in self.workers.values() if w.template == self.agents[effect.agent].current and w.open]
        hold(ready, f"{effect} though none of its workers is ready")

    def _version_refused(self, effect: ef.VersionRefused) -> None:
        hold(self.verdicts.get(effect.request, "") is None, f"{effect} answers nothing")
        self.verdicts[effect.request] = "refused"

    def _agent_removed(self, effect: ef.AgentRemoved) -> None:
        agent = self.agents.pop(effect.agent)
        hold(agent.removal == effect.request, f"{effect} was not asked for")
        left = self.processes_of(agent)
        hold(not left and not agent.waiting, f"{effect} though {left} are left")

    def _stop(self, effect: ef.Stopped) -> None:
        hold(self.stopping and not self.stopped, "Stopped was not asked for, or is said twice")
        hold(not self.workers and not self.templates and not self.runs, "Stopped though something is left")
        self.stopped = True
