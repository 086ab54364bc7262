"""Bugs to be seeded into the core, one at a time, each a small wrong word where a right one stands.

Those under REAL were in the core once; each has its story in tests/replay. The others were thought up.
"""

from typing import NamedTuple


class Seed(NamedTuple):
    """In `function` (module of the core, then the name in it) the text `right` becomes `wrong`."""

    name: str
    function: str
    right: str
    wrong: str


THOUGHT_UP = (
    # One owner
    Seed("a home on a dead worker", "sessions:Session.live_home",
         "home if home is not None and home.alive else None", "home"),
    Seed("two homes", "sessions:SessionMap.start",
         'context = "spilled"',
         'context = "spilled"; home.sessions -= 1; home.saved -= session.saved; worker.sessions += 1; '
         "worker.saved += session.saved; session.home = worker"),
    Seed("context warm after death", "sessions:SessionMap.start", 'context = "lost"', 'context = "warm"'),
    Seed("a spilled run called warm", "sessions:SessionMap.start", 'context = "spilled"', 'context = "warm"'),
    Seed("strict runs leave their home", "run:Run.waits_for_home",
         'self.require_warm or self.affinity == "strict"', "self.require_warm"),
    Seed("impatient", "routing:Router._stand", "+ agent.settings.patience_s", "+ 0.0"),
    # Sessions end when they should
    Seed("ttl off by one", "sessions:SessionMap.expired", "session.last_used + ttl_s > now",
         "session.last_used + ttl_s >= now"),
    Seed("ttl ends a session in use", "sessions:SessionMap._unused", "not session.running and", ""),
    Seed("lru evicts a waiting session", "sessions:SessionMap._unused", "and id not in waiting", ""),
    Seed("lru evicts the most recent", "sessions:SessionMap.surplus", "islice(self._unused(waiting),",
         "islice(reversed(list(self._unused(waiting))),"),
    Seed("sessions are never evicted", "supervisor:Supervisor._settle",
         "len(agent.sessions) > agent.settings.session_max", "False"),
    # At most once, and exactly one answer
    Seed("a delivered run is run again", "deaths:mourn", "run.id in undelivered and", ""),
    Seed("an end is believed from anybody", "supervisor:Supervisor._run_ended", "or run.worker is not worker", ""),
    Seed("a run is answered twice", "routing:Router.resolve", "self.runs.pop(run.id, None)",
         "self._emit(Resolve(run.id, state.value, code, message, None, None, None, 0, 0.0, cause, agent.id, None)); "
         "self.runs.pop(run.id, None)"),
    Seed("an expired run is not answered", "supervisor:Supervisor._agent_due", "run.queue_deadline <= now]", "False]"),
    # Only where it may
    Seed("a run to a draining worker", "worker:Worker.open", "self.state is ProcessState.READY",
         "self.state in (ProcessState.READY, ProcessState.DRAINING)"),
    Seed("capacity ignored", "worker:Worker.open", "< self.capacity", "<= self.capacity"),
    Seed("queue overlap ignored", "routing:_blocked",
         "session is not None and session.running > 0 and run.overlap in EXCLUSIVE", "False"),
    Seed("reject overlap ignored", "routing:Router.submit", 'busy and run.overlap == "reject"', "False"),
    Seed("the queue has no limit", "routing:Router._wait", "len(agent.waiting) >= settings.queue_size", "False"),
    Seed("any worker for a new session", "routing:_load", "return worker.sessions, len(worker.runs)",
         "return 0, len(worker.runs)"),
    # Nobody waits in vain
    Seed("a lost waiter when a worker starts", "pool:Pool.worker_ready", "self._router.freed(agent, worker, now)",
         "agent.idle[worker.id] = worker"),
    Seed("a lost waiter when a home dies", "routing:Router.home_died", "self._place(agent, lane, now)",
         "agent.rotation[lane] = None"),
    Seed("starvation by one's own lane", "routing:Router._next_lane", "anyone.ticket < own.ticket", "False"),
    Seed("starvation by a lane that keeps its place", "routing:Router._place", "self._ticket += 1",
         "self._ticket = lane.ticket or self._ticket + 1"),
    Seed("patience never ends", "routing:Router.patience_over", "self._roam(agent, lane, now)", "pass"),
    Seed("patience not armed", "routing:Router._stand", "self._deadlines.arm(lane, lane.patience_at)", "pass"),
    Seed("run deadline not armed", "routing:Router._start", "self._deadlines.arm(worker, run.deadline)", "pass"),
    Seed("queue deadline not armed", "routing:Router._wait", "self._deadlines.arm(agent, run.queue_deadline)", "pass"),
    Seed("a run that ignores its end is not killed", "pool:Pool.worker_due",
         "run.kill_at is not None and run.kill_at <= now", "False"),
    # The pool is what is wanted
    Seed("quarantine never ends", "supervisor:Supervisor._agent_due", "agent.quarantined_until <= now", "False"),
    Seed("no quarantine", "restart:Record.exhausted", "len(self._times) == INTENSITY and", "False and"),
    Seed("a slot is never refilled", "pool:Pool.worker_exited", "self._orders.leave_slot(agent, worker)", "pass"),
    Seed("max_workers exceeded", "scaling:wanted_workers", "min(by_demand, settings.max_workers)", "by_demand"),
    Seed("scale-down below min_workers", "scaling:wanted_workers", "max(settings.min_workers,", "max(0,"),
    Seed("scale-down stops a busy worker", "scaling:cheapest", "not w.runs and", ""),
    Seed("the old version keeps its workers", "versions:Versions.let_go",
         "self._orders.retire(agent, worker, None, now)", "pass"),
    Seed("the drain has no end", "pool:Pool._overdue", 'self._router.stop(run, "cancelled", now)', "pass"),
    Seed("a kill is not repeated", "orders:Orders.kill", "worker.deadline = now + KILL_RETRY_S",
         "worker.deadline = None"),
    Seed("who ignores an abort is not killed", "orders:Orders.abort", "worker.deadline = now + ABORT_S",
         "worker.deadline = now + 1e9"),
    Seed("an abort counts as a kill", "pool:Pool._overdue", "if worker.killed:", "if True:"),
    Seed("a run is aborted before its grace is over", "routing:Router.stop", "now + self._grace_s", "now"),
    Seed("a template is left behind", "pool:Pool.settle", "self._orders.stop_template(template, now)", "pass"),
    # Versions come and go
    Seed("an outdated worker serves anybody", "routing:Router._next_lane", " if not worker.outdated else None", ""),
    Seed("an outdated worker is taken for idle", "routing:Router.freed", "if not worker.outdated:", "if True:"),
    Seed("an outdated home serves after strangers", "routing:Router._place",
         "(agent.rotation and not worker.outdated)", "agent.rotation"),
    Seed("old sessions move at once", "versions:Versions.let_go", "if stay and w.sessions", "if False"),
    Seed("an outdated worker stays for ever", "pool:Pool._overdue", "self.versions.linger(agent, worker, now)",
         "pass"),
    Seed("outdated workers without end", "versions:Versions.let_go", "[-agent.settings.max_workers:]", ""),
    Seed("an old worker's run is proof of the new version", "versions:Versions.succeeded", "if not worker.outdated:",
         "if True:"),
    Seed("an old worker's death counts", "pool:Pool.worker_exited", "and not worker.outdated", ""),
    Seed("what has worked is rolled back", "versions:Versions.succeeded", "agent.previous = None", "pass"),
    Seed("nothing is rolled back", "versions:Versions.failed", "len(agent.record) >= PROBATION_DEATHS", "False"),
    Seed("what is given up goes on", "versions:Versions._give_up",
         "self._orders.retire(agent, worker, None, now)", "pass"),
    Seed("a rollback that fails is tried for ever", "versions:Versions.refuse", "self._quarantine(agent, now)",
         "pass"),
    Seed("a restart begins the first minute again", "versions:_previous", "before.version == template.version",
         "False"),
    Seed("a late ready wakes the dead", "pool:Pool.worker_ready", "worker.state is not ProcessState.STARTING",
         "worker.state is ProcessState.READY"),
    # When the daemon has died
    Seed("a silent worker is no home", "adoption:Adopter.over", "agent.sessions.claim(session, worker)", "pass"),
    Seed("a home that only its run tells of is none", "adoption:Adopter.over", "session in [*adoption.claims.get("
         "worker.id, ()), *own]", "session in adoption.claims.get(worker.id, ())"),
    Seed("a silent template is not waited for", "adoption:Adoption.complete",
         "not self.templates and (not self.workers or self.deadline <= now)",
         "self.deadline <= now or not self.templates and not self.workers"),
    Seed("an adoption has no end", "adoption:Adoption.complete", "or self.deadline <= now", ""),
    Seed("a deploy kills those who have not been heard", "versions:Versions.let_go", "and not w.unheard", ""),
    Seed("runs that wait for an adoption wait for ever", "adoption:Adopter.over", "self._router.settled(agent, now)",
         "pass"),
    Seed("a run that its worker does not have goes on", "adoption:Adopter._hear_runs",
         "if run.id not in held", "if False"),
    Seed("a run that only its worker knows is forgotten", "adoption:Adopter._hear_runs",
         "self._resume(agent, worker, unfinished, now)", "pass"),
    Seed("a run that nobody has is forgotten", "adoption:Adopter.over", "self._give_up(", "(lambda *_: None)("),
    Seed("what workers say of homes is not heard", "sessions:SessionMap.settle", "self.claim(seen.id, worker)",
         "self.get(seen.id)"),
    Seed("sessions end before their homes were heard", "supervisor:Supervisor._settle",
         "and agent.adoption is None", ""),
    Seed("a found worker has no slot", "adoption:Adopter._found",
         "template is agent.current and agent.vacant", "False"),
    Seed("the time of a run begins again with each daemon", "adoption:Adopter._hear_runs",
         "run.deadline = now + unfinished.left_s", "pass"),
)

REAL = (
    Seed("what is stopping is given up", "pool:Pool.wind_down", 'agent.given_up, agent.previous = "", None',
         'agent.given_up = ""'),
    Seed("a run starts on a worker that is condemned", "pool:Pool.worker_exited",
         "if worker.template is agent.candidate:",
         "mourn(self._router, agent, worker, cause, undelivered, now)\n    if worker.template is agent.candidate:"),
    Seed("a worker that fails when ready stays idle", "orders:Orders.kill", "agent.idle.pop(worker.id, None)", "pass"),
    Seed("a version is staged while stopping", "supervisor:Supervisor._version_staged", "self.stopping", "False"),
    Seed("a dead template is killed", "versions:Versions._drop", "template.state is not ProcessState.EXITED", "True"),
    Seed("a ttl is forgotten while the session is in use", "sessions:SessionMap.next_expiry",
         "now + ttl_s if self._by_id else None", "None"),
    Seed("a session that waited in vain is not in use", "routing:Router._forget",
         "agent.sessions.touch(lane.session, now)", "pass"),
    Seed("a shorter ttl is not looked at", "versions:Versions.promote", "self._deadlines.arm(agent, now)", "pass"),
    Seed("eviction at the start of a session only", "supervisor:Supervisor._settle",
         "len(agent.sessions) > agent.settings.session_max",
         "len(agent.sessions) > agent.settings.session_max and "
         '"Dispatch" in [type(effect).__name__ for effect in self._effects]'),
    Seed("a stop without grace", "pool:Pool._shrink", "self._orders.stop(worker, now)",
         "self._orders.stop(worker, worker.idle_since)"),
    Seed("scale-down keeps the dying", "scaling:cheapest", "return dying +", "return"),
    Seed("overlap with a spilled run", "routing:_blocked", "session is not None and",
         "session is not None and session.live_home and"),
    Seed("an interrupt cancels and is refused", "routing:Router.submit",
         "others >= agent.settings.queue_size", "False"),
    Seed("interrupting, the first goes first", "routing:Router._interrupt", "reversed(list(lane.runs))",
         "list(lane.runs)"),
    Seed("refusing all, the first goes first", "pool:Pool._refuse_waiting", "reversed(list(agent.waiting.values()))",
         "list(agent.waiting.values())"),
    Seed("expiring, the first goes first", "supervisor:Supervisor._agent_due", "in reversed(agent.waiting.values())",
         "in list(agent.waiting.values())"),
    Seed("runs are taken back in the wrong order", "deaths:mourn", "in reversed(worker.runs.values())",
         "in worker.runs.values()"),
    Seed("a run taken back has no deadline", "routing:Router.take_back",
         "self._deadlines.arm(agent, run.queue_deadline)", "pass"),
    Seed("a parked run has no patience", "routing:Router.ended", "lane.patient_from = now", "pass"),
    Seed("a silent template is held against the version that serves", "pool:Pool.template_failed",
         "template is agent.current and not self.adopter.awaits(agent, template)", "True"),
    Seed("a template that is not heard yet is stopped", "pool:Pool.settle", "and agent.adoption is None", ""),
    Seed("a run starts before its home was heard", "routing:_unsettled",
         "agent.adoption is not None and", "False and"),
    Seed("a template takes its agent into quarantine", "restart:Record.failed", "now - self._times[-1] >= ONE_CAUSE_S",
         "True"),
)

SEEDS = {seed.name: seed for seed in (*THOUGHT_UP, *REAL)}
