"""Adoption: an agent gets back the templates and workers that outlived the last daemon, with what is in them.

The workers know best: which sessions live in them, which runs they have. The disk may be some milliseconds behind, so
while somebody who might know has not been heard, no run of a session starts: it could live elsewhere. Runs without a
session start wherever somebody is free. That is over when all were heard or are proved dead, or ADOPT_S have passed
and no template is left whose workers nobody knows. Whoever was not heard by then is killed, unless the log says that
it has a run: it may be busy where it cannot hear, and the run's own deadline decides. Until it is heard or proved
dead, the sessions that it holds are those that the disk says it holds, and those whose runs it has.
"""

from collections import Counter
from typing import TYPE_CHECKING

from orpheusd.core.deadlines import Deadlines
from orpheusd.core.events import AgentLoaded, TemplateAdopted, Unfinished, WorkerAdopted
from orpheusd.core.orders import Orders
from orpheusd.core.restart import Slot
from orpheusd.core.routing import Router
from orpheusd.core.run import Run, RunState
from orpheusd.core.versions import Versions
from orpheusd.core.worker import ProcessState, Template, Worker

if TYPE_CHECKING:
    from orpheusd.core.agent import Agent

#: Somebody who is well dials within a tenth of a second. What has not in this time is stopped, stuck, or gone.
ADOPT_S = 5.0

NOT_HEARD = f"it did not dial again within {ADOPT_S:g} s of the daemon's start"

_NEVER_STARTED = "the daemon ended while this run was waiting, and no worker has it: it was not started"
_PERHAPS_STARTED = "the daemon ended while this run was waiting or as it was handed out; no worker has told of it"
_LOST = "the daemon ended while a worker ran this, and that worker is gone, or could not be reached and was killed"
_UNKNOWN_TO_WORKER = "the daemon ended as it handed this run to a worker, which does not have it"

#: Contexts of runs that are executed where their session does not live.
ELSEWHERE = (None, "spilled")


class Adoption:
    """What is awaited of one agent's orphans.

    Invariant: `templates` are those that have not been heard, `workers` those of the others that have not;
    `unfinished` are the runs that nobody has spoken for, `claims` the sessions that the disk gives to workers which
    have not been heard.
    """

    def __init__(self, event: AgentLoaded, deadline: float) -> None:
        self.deadline = deadline
        self.templates = {orphan.template for orphan in event.orphans}
        self.workers: set[str] = set()
        self.unfinished = {run.run: run for run in event.unfinished}
        self.claims: dict[str, list[str]] = {}
        for seen in event.sessions:
            if seen.home is not None:
                self.claims.setdefault(seen.home, []).append(seen.id)

    def complete(self, now: float) -> bool:
        return not self.templates and (not self.workers or self.deadline <= now)


class Adopter:
    """Brings it about. It decides nothing of what is awaited for longer than an adoption."""

    def __init__(self, deadlines: Deadlines, router: Router, orders: Orders, versions: Versions) -> None:
        self._deadlines = deadlines
        self._router = router
        self._templates = orders.templates
        self._workers = orders.workers
        self._versions = versions

    def begin(self, agent: "Agent", event: AgentLoaded, now: float) -> None:
        """An agent was loaded. If a template of its version may be there, that is its current one."""
        adoption = agent.adoption = Adoption(event, now + ADOPT_S)
        for orphan in event.orphans:
            template = Template(orphan.template, agent.id, orphan.version, orphan.settings, None)
            self._templates[template.id] = agent.templates[template.id] = template
            template.deadline = adoption.deadline
            self._deadlines.arm(template, adoption.deadline)
            if orphan.version == event.version:
                agent.current = template
        self._deadlines.arm(agent, adoption.deadline)

    def template_adopted(self, agent: "Agent", template: Template, event: TemplateAdopted, now: float) -> None:
        adoption = agent.adoption
        if adoption is None or template.state is not ProcessState.STARTING:
            return
        template.move(ProcessState.READY)
        template.deadline = None
        adoption.templates.discard(template.id)
        for id in [id for id in dict.fromkeys(event.workers) if id not in self._workers]:
            worker = self._found(agent, template, id, now)
            adoption.workers.add(id)
            runs = [run for run in adoption.unfinished.values() if run.worker == id]
            for run in runs:
                self._resume(agent, worker, adoption.unfinished.pop(run.run), now)
            longest_s = max((run.left_s for run in runs), default=0.0)
            worker.deadline = max(adoption.deadline, now + longest_s + ADOPT_S) if runs else adoption.deadline
            self._deadlines.arm(worker, worker.deadline)

    def worker_adopted(self, agent: "Agent", worker: Worker, event: WorkerAdopted, now: float) -> None:
        if not worker.unheard:
            return
        adoption = agent.adoption
        worker.move(ProcessState.READY)
        worker.deadline = None
        worker.idle_since = now - min((seen.idle_s for seen in event.sessions), default=0.0)
        self._hear_runs(agent, worker, event, now)
        if adoption is not None:
            adoption.workers.discard(worker.id)
            adoption.claims.pop(worker.id, None)
        else:
            agent.sessions.sort()
            self._deadlines.arm(agent, now)  # sessions may have come that are too old
            self._router.settled(agent, now)
            if worker.outdated:
                self._versions.let_go(agent, now)
        self._router.freed(agent, worker, now)

    def _hear_runs(self, agent: "Agent", worker: Worker, event: WorkerAdopted, now: float) -> None:
        """Hold what the worker says it has against what the log says it has, and believe the worker."""
        held = {run.run: run for run in event.runs}
        for lost in [run for run in worker.runs.values() if run.id not in held]:
            self._router.ended(agent, lost, now)
            self._router.resolve(agent, lost, RunState.CRASHED, "worker-crashed", _UNKNOWN_TO_WORKER, now)
        over = Counter(run.session for run in event.runs if run.over)
        for seen in event.sessions:
            agent.sessions.settle(seen, worker, over[seen.id], now)
        for id, unfinished in held.items():
            if agent.adoption is not None:
                agent.adoption.unfinished.pop(id, None)
            run = self._router.runs.get(id)
            if run is None:
                self._resume(agent, worker, unfinished, now)
            elif run.worker is worker:
                run.deadline = now + unfinished.left_s
                run.started_at = now - unfinished.elapsed_s
                self._deadlines.arm(worker, run.deadline)
                # if it was told to stop meanwhile, nobody could hear it; and of its time the worker knows better
                reason, run.stopping, run.kill_at = run.stopping, "", None
                if reason == "cancelled" and not unfinished.over:
                    self._router.stop(run, reason, now)

    def awaits(self, agent: "Agent", template: Template) -> bool:
        return agent.adoption is not None and template.id in agent.adoption.templates

    def gone(self, agent: "Agent", id: str) -> None:
        """A template or worker has exited: nobody need wait for it."""
        if agent.adoption is not None:
            agent.adoption.templates.discard(id)
            agent.adoption.workers.discard(id)

    def over(self, agent: "Agent", now: float) -> None:
        """All were heard, or had their time: what nobody spoke for is settled, and sessions are where they are."""
        adoption = agent.adoption
        if adoption is None:
            return
        for worker in [agent.workers[id] for id in sorted(adoption.workers)]:
            own = [run.session for run in worker.runs.values() if run.session and run.context not in ELSEWHERE]
            for session in [*adoption.claims.get(worker.id, ()), *own]:
                agent.sessions.claim(session, worker)
        for run in adoption.unfinished.values():
            self._give_up(agent, run, bool(adoption.workers or adoption.templates), now)
        agent.sessions.sort()
        self._versions.let_go(agent, now)
        agent.adoption = None
        self._router.settled(agent, now)

    def _found(self, agent: "Agent", template: Template, id: str, now: float) -> Worker:
        """A worker of an earlier daemon is of the pool if it is of the current version, and there is a place."""
        slot = Slot()
        if template is agent.current and agent.vacant:
            slot = agent.vacant.pop()
        elif template is agent.current and len(agent.slots) < agent.settings.max_workers:
            agent.slots.append(slot)
        worker = Worker(id, template, slot, now)
        self._workers[id] = agent.workers[id] = worker
        worker.adopted = True
        template.workers += 1
        if slot in agent.slots:
            slot.worker = worker
        else:
            worker.outdated_at = now
        return worker

    def _resume(self, agent: "Agent", worker: Worker, unfinished: Unfinished, now: float) -> None:
        """A run that was handed out before is on `worker` again, as far as the core is concerned."""
        run = self._started(agent, unfinished, now)
        self._router.runs[run.id] = worker.runs[run.id] = run
        run.worker = worker
        run.deadline = now + unfinished.left_s
        agent.started += 1
        agent.outdated_runs += worker.outdated
        if unfinished.over:
            agent.owed.add(run.id)
        # a session of a run that is over, of which neither the disk nor the worker knows any more, has ended since
        if run.session is not None and not (unfinished.over and agent.sessions.get(run.session) is None):
            run.entry = agent.sessions.resume(run.session, now)
        self._deadlines.arm(worker, run.deadline)

    def _give_up(self, agent: "Agent", unfinished: Unfinished, unheard: bool, now: float) -> None:
        """Nobody has the run. If it was started, its session is one that has lost its memory."""
        run = self._started(agent, unfinished, now)
        message = _LOST if unfinished.worker is not None else _PERHAPS_STARTED if unheard else _NEVER_STARTED
        if run.session is not None and unfinished.worker is not None:
            run.entry = agent.sessions.resume(run.session, now)
            self._router.ended(agent, run, now)
        self._router.resolve(agent, run, RunState.CRASHED, "worker-crashed", message, now, "cause unknown")

    def _started(self, agent: "Agent", unfinished: Unfinished, now: float) -> Run:
        settings, began = agent.settings, now - unfinished.elapsed_s
        run = Run(unfinished.run, agent.id, unfinished.session, settings.affinity, settings.overlap, False,
                  settings.timeout_s, settings.queue_timeout_s, began)
        run.move(RunState.STARTED)
        run.started_at = began
        run.context = unfinished.context
        return run
