"""What an onlooker learns of those who outlive a daemon: who is awaited, what they say, and when that is over."""

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.adoption import ADOPT_S
from orpheusd.core.pool import Policy
from tests.property.account import Account
from tests.property.records import (
    AdoptionRecord,
    AgentRecord,
    RunRecord,
    SessionRecord,
    TemplateRecord,
    WorkerRecord,
    hold,
)

CRASHED = ("crashed", "worker-crashed")


class Adopted(Account):
    """Invariant: as that of the account; `answers` has the one Resolve of each run that is over."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.answers: dict[str, ef.Resolve] = {}
        self._hear |= {ev.TemplateAdopted: self._template_adopted, ev.WorkerAdopted: self._worker_adopted}

    def daemon_died(self) -> None:
        """What was in its memory is gone. Who waited for an answer is told by a broken connection."""
        self.agents, self.templates, self.workers, self.runs = {}, {}, {}, {}
        self.verdicts = {request: verdict for request, verdict in self.verdicts.items() if verdict is not None}
        self.stopping = self.stopped = False

    def adoptions(self, adopting: set[str]) -> None:
        """`adopting` are the agents that the core still adopts for."""
        for agent in self.agents.values():
            adoption = agent.adoption
            if adoption is None:
                hold(agent.id not in adopting, f"{agent.id} adopts, and nobody is left to be heard")
            elif agent.id in adopting:
                late = isinstance(self.event, ev.TimePassed) and adoption.complete(self.now)
                hold(not late, f"{agent.id} still adopts, though all were heard or had their time")
            else:
                going = self.stopping or agent.removal is not None
                hold(going or adoption.complete(self.now), f"{agent.id} does not wait for {adoption}")
                self._adoption_over(agent, adoption)

    def _agent_loaded(self, event: ev.AgentLoaded) -> bool:
        if not super()._agent_loaded(event):
            return False
        agent = self.agents[event.agent]
        agent.version = event.version
        homes = {seen.id: seen.home for seen in event.sessions if seen.home is not None}
        deadline = self.now + ADOPT_S
        agent.adoption = AdoptionRecord(deadline, {orphan.template for orphan in event.orphans}, set(), homes)
        for orphan in event.orphans:
            self.templates[orphan.template] = TemplateRecord(
                orphan.template, agent.id, orphan.version, orphan.settings, deadline, adopted=True)
            if orphan.version == event.version:
                agent.current = orphan.template
        for unfinished in event.unfinished:
            self._reopen(agent, unfinished)
        return True

    def _template_adopted(self, event: ev.TemplateAdopted) -> bool:
        template = self.templates.get(event.template)
        if template is None or template.state != "starting":
            return template is not None
        agent = self.agents[template.agent]
        adoption = agent.adoption
        assert adoption is not None
        template.state, template.deadline = "ready", None
        adoption.templates.discard(template.id)
        for id in event.workers:
            worker = self.workers[id] = WorkerRecord(
                id, agent.id, template.id, template.settings.concurrency, adoption.deadline, idle_since=self.now,
                adopted=True)
            pool = [w for w in self._workers_of(agent) if w is not worker and w.outdated_at is None
                    and not w.leaving and w.template != agent.candidate]
            if template.id != agent.current or len(pool) >= agent.settings.max_workers:
                worker.outdated_at = self.now
            adoption.workers.add(id)
            runs = [run for run in self.runs.values() if run.state == "unspoken" and run.logged_on == id]
            for run in runs:
                self._go_on(agent, worker, run)
                worker.deadline = max(worker.deadline or 0.0, run.deadline + ADOPT_S)
        return True

    def _worker_adopted(self, event: ev.WorkerAdopted) -> bool:
        worker = self.workers.get(event.worker)
        if worker is None or not worker.silent:
            return worker is not None
        agent = self.agents[worker.agent]
        worker.state, worker.deadline = "ready", None
        worker.idle_since = self.now - min((seen.idle_s for seen in event.sessions), default=0.0)
        held = {run.run: run for run in event.runs}
        for run in [run for run in worker.runs.values() if run.id not in held]:
            run.reported = CRASHED
            self._leave(worker, run)
        for seen in event.sessions:
            self._settle(agent, worker, seen, sum(1 for u in event.runs if u.over and u.session == seen.id))
        for unfinished in event.runs:
            run = self.runs.get(unfinished.run) or self._reopen(agent, unfinished)
            if run.state == "unspoken":
                run.context = unfinished.context
                self._go_on(agent, worker, run, unfinished.over)
            if run.worker == worker.id:
                run.deadline = self.now + unfinished.left_s
                run.stopping, run.kill_at = "", None
        if agent.adoption is not None:
            agent.adoption.workers.discard(worker.id)
        else:
            self._homes_known(agent)
            if worker.outdated_at is not None:
                self.let_go(agent)
        return True

    def _worker_exited(self, event: ev.WorkerExited) -> bool:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._gone(self.agents[worker.agent], worker.id)
        return super()._worker_exited(event)

    def _template_exited(self, event: ev.TemplateExited) -> bool:
        template = self.templates.get(event.template)
        if template is not None:
            self._gone(self.agents[template.agent], template.id)
        return super()._template_exited(event)

    def _gone(self, agent: AgentRecord, id: str) -> None:
        if agent.adoption is not None:
            agent.adoption.templates.discard(id)
            agent.adoption.workers.discard(id)

    def _adoption_over(self, agent: AgentRecord, adoption: AdoptionRecord) -> None:
        agent.adoption, agent.settled_at = None, self.now
        for id in sorted(adoption.workers):
            own = [run.session for run in self.workers[id].runs.values() if run.context not in (None, "spilled")]
            for name in [*(name for name, home in adoption.homes.items() if home == id), *own]:
                session = agent.sessions.get(name or "")
                if session is not None and session.home not in self.workers:
                    session.home = id
        for run in self.runs.values():
            if run.agent == agent.id and run.state == "unspoken":
                run.state, run.reported = "ended", CRASHED
                if run.session is not None and run.logged_on is not None:
                    session = agent.sessions.setdefault(run.session, SessionRecord("", self.now, self.now))
                    session.turns, session.last_used = session.turns + 1, self.now
        self._homes_known(agent)
        self.let_go(agent)

    def _homes_known(self, agent: AgentRecord) -> None:
        """Patience with a home begins when that is known."""
        for session in agent.sessions.values():
            session.home_at = self.now

    def let_go(self, agent: AgentRecord) -> None:
        """Outdated workers leave, but for the best of those that are homes, and for those who may be."""
        old = [w for w in self._workers_of(agent) if w.outdated_at is not None and not w.silent]
        homes = [w for w in old if w.lingers and self.sessions_on(agent, w)] if agent.settings.drain_s else []
        homes.sort(key=lambda worker: (bool(worker.runs), self._unsaved_on(agent, worker), worker.idle_since))
        if agent.current in self.templates and self.templates[agent.current].at_once:
            homes = [worker for worker in homes if worker.template == agent.current]
        staying = homes[-agent.settings.max_workers:]
        self._retire([worker for worker in old if worker not in staying], None)

    def sessions_on(self, agent: AgentRecord, worker: WorkerRecord) -> int:
        return sum(1 for session in agent.sessions.values() if session.home == worker.id)

    def _unsaved_on(self, agent: AgentRecord, worker: WorkerRecord) -> bool:
        return any(session.home == worker.id and not session.saved for session in agent.sessions.values())

    def _settle(self, agent: AgentRecord, worker: WorkerRecord, seen: ev.Seen, over: int) -> None:
        """The session lives there, unless it is known to live elsewhere."""
        used = self.now - seen.idle_s
        session = agent.sessions.setdefault(seen.id, SessionRecord("", 0.0, used, turns=seen.turns))
        if session.home not in self.workers:
            session.home = worker.id
        if session.home == worker.id:
            session.turns = max(0, max(session.turns, seen.turns) - over)
            session.last_used = max(session.last_used, used)
            session.saved |= seen.saved

    def _reopen(self, agent: AgentRecord, unfinished: ev.Unfinished) -> RunRecord:
        """A run of an earlier daemon that has no end on the disk, whatever its caller was told."""
        self.answers.pop(unfinished.run, None)
        settings = agent.settings
        run = self.runs[unfinished.run] = RunRecord(
            unfinished.run, agent.id, unfinished.session, settings.affinity == "strict", settings.overlap, False,
            unfinished.left_s, self.now, self.now, "unspoken", unfinished.worker)
        run.context = unfinished.context
        return run

    def _go_on(self, agent: AgentRecord, worker: WorkerRecord, run: RunRecord, over: bool = False) -> None:
        """The run is on that worker. One that is `over` tells nothing of a session that nobody knows any more."""
        run.state, run.worker, run.deadline = "started", worker.id, self.now + run.timeout_s
        worker.runs[run.id] = run
        if run.session is not None and (run.session in agent.sessions or not over):
            session = agent.sessions.setdefault(run.session, SessionRecord("", self.now, self.now))
            session.running[run.id] = run
