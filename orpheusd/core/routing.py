"""Routing: which worker executes which run, and in what order those wait that cannot start yet.

Waiting runs stand in lanes: one lane a session, in order of arrival, and one for each run without a
session. Only the head of a lane may start. Where a lane stands says who may serve it:

- in its home's `lanes`: the home is alive but busy, and it is waited for;
- in the agent's `rotation`: any worker of the pool may take it (no home, or a `soft` run whose patience is over);
- parked: the session has a run in progress and this one may not overlap it, or the agent adopts workers of an
  earlier daemon, and where the session lives is not known yet.

A worker that frees serves the older of the two lanes it may serve; a lane that was served goes to the end. An
outdated worker serves the lanes that want it as their home, and no other.
So a waiting run holds no worker, delays no other session, and a session that floods its lane starves nobody.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from orpheusd.core.deadlines import Deadlines
from orpheusd.core.effects import CancelRun, Dispatch, Effect, EndSession, Resolve
from orpheusd.core.lanes import Lane
from orpheusd.core.queues import Queues
from orpheusd.core.run import Run, RunState
from orpheusd.core.sessions import BATCH, Session
from orpheusd.core.worker import Worker

if TYPE_CHECKING:
    from orpheusd.core.agent import Agent

EXCLUSIVE = ("queue", "interrupt")
BUSY = "the session has a run in progress and `overlap: reject` was asked for"
COLD = "the session's memory is gone, and only a warm context was asked for; run it without that to go on"


class Router:
    """Puts runs on workers. It knows nothing of processes being started or dying.

    Invariant, after each public call: no open worker exists that a waiting lane could be served by. `runs`
    holds every run that is not over, by id.
    """

    def __init__(
        self, emit: Callable[[Effect], None], deadlines: Deadlines, grace_s: float, waiting_bytes: int
    ) -> None:
        self._emit = emit
        self._deadlines = deadlines
        self._grace_s = grace_s
        self.queues = Queues(waiting_bytes)
        self._ticket = 0
        self._taken_back: list[Lane] = []
        self.runs: dict[str, Run] = {}

    def submit(self, agent: "Agent", run: Run, now: float) -> None:
        """A new run: start it at once where that is allowed, else let it wait, else refuse it."""
        self.runs[run.id] = run
        id = run.session
        lane = None if id is None else agent.lanes.get(id)
        session = None if id is None else agent.sessions.get(id)
        busy = lane is not None or (session is not None and session.running > 0)
        if busy and run.overlap == "reject" and not run.readmitted:
            self._refuse(agent, run, "session-busy", BUSY, now)
            return
        interrupts = busy and run.overlap == "interrupt"
        if (lane is None or interrupts) and not _unsettled(agent, id) and _cold(run, session):
            self._refuse(agent, run, "context-not-warm", COLD, now)
            return
        if interrupts:
            full = self.queues.refusal(agent, run, lane.runs if lane is not None else ())
            if full:
                self._refuse(agent, run, "overloaded", full, now)
                return
            self._interrupt(agent, run, lane, now)
            lane = None
        worker = self._worker_now(agent, run, session) if lane is None else None
        if worker is not None:
            self._start(agent, run, worker, now)
        else:
            self._wait(agent, run, lane, now)

    def freed(self, agent: "Agent", worker: Worker, now: float) -> None:
        """`worker` may have room for another run: serve the lanes that have waited longest for it."""
        while worker.open:
            lane = self._next_lane(agent, worker)
            if lane is None:
                if not worker.outdated:
                    agent.idle.add(worker)
                return
            self._serve(agent, lane, worker, now)

    def ended(self, agent: "Agent", run: Run, now: float) -> None:
        """A started run has left its worker, for whatever reason; its session may go on."""
        worker = run.worker
        if worker is not None:
            self._leave(agent, run, worker)
            worker.idle_since = now
        if run.session is not None and run.entry is not None:
            agent.sessions.finish(run.session, run.entry, now)
            lane = agent.lanes.get(run.session)
            if lane is not None and lane.parked:
                lane.patient_from = now
                self._place(agent, lane, now)

    def settled(self, agent: "Agent", now: float) -> None:
        """It has come to be known where sessions live: what waits for them takes its place, in the order it has."""
        for lane in sorted(agent.lanes.values(), key=lambda lane: lane.ticket):
            if lane.session is not None:
                lane.patient_from = now
                self._unplace(agent, lane)
                self._overlaps_after_all(agent, lane, now)
                self._place(agent, lane, now)

    def take_back(self, agent: "Agent", run: Run) -> None:
        """A run was handed to a worker that died without having read it: it waits again, first in its lane.

        As if it had never been handed over: a session that it had begun is not known any more. The lane gets its
        place from `home_died`.
        """
        if run.worker is not None:
            self._leave(agent, run, run.worker)
        if run.session is not None and run.entry is not None:
            home = agent.sessions.take_back(run.session, run.entry)
            if home is not None:
                agent.idle.lightened(home)
        run.move(RunState.QUEUED)
        run.worker, run.entry, run.context = None, None, None
        self.queues.add_first(agent, run)
        self._deadlines.arm(agent, run.queue_deadline)
        lane = agent.lanes.get(_key(run))
        if lane is None:
            lane = agent.lanes[_key(run)] = Lane(agent, _key(run), run.session)
        self._unplace(agent, lane)
        lane.runs.appendleft(run)
        self._taken_back.append(lane)

    def home_died(self, agent: "Agent", worker: Worker, now: float) -> None:
        """`worker` is dead: whoever waited for it may go elsewhere."""
        agent.sessions.home_died(worker)
        lanes = dict.fromkeys([*reversed(self._taken_back), *worker.lanes])
        self._taken_back.clear()
        for lane in lanes:
            self._unplace(agent, lane)
            self._place(agent, lane, now)

    def patience_over(self, lane: Lane, now: float) -> None:
        """A lane's wake-up: if its head still waits for its home, and has done so long enough, anyone may take it."""
        agent = lane.agent
        if lane.home is None or lane in agent.rotation or not lane.runs or lane.runs[0].waits_for_home:
            return
        if lane.patience_at > now:
            self._deadlines.arm(lane, lane.patience_at)
            return
        self._roam(agent, lane, now)

    def withdraw(self, agent: "Agent", run: Run, state: RunState, code: str, message: str, now: float) -> None:
        """Take a waiting run out of its lane and answer its caller."""
        lane = agent.lanes[_key(run)]
        was_head = lane.runs[0] is run
        lane.runs.remove(run)
        self.queues.remove(agent, run)
        if was_head:
            self._unplace(agent, lane)
        self.resolve(agent, run, state, code, message, now)
        if lane.runs:
            if was_head:
                self._place(agent, lane, now)
        else:
            self._forget(agent, lane, now)

    def stop(self, run: Run, reason: str, now: float) -> None:
        """Tell a started run's handler to stop; its worker is killed if it has not by the end of the grace."""
        if run.worker is None or run.stopping:
            return
        run.stopping = reason
        run.kill_at = now + self._grace_s
        self._emit(CancelRun(run.worker.id, run.id, reason))
        self._deadlines.arm(run.worker, run.kill_at)

    def resolve(
        self, agent: "Agent", run: Run, state: RunState, code: str, message: str, now: float, cause: str = ""
    ) -> None:
        """The run is over: count it and answer the caller."""
        run.move(state)
        self.runs.pop(run.id, None)
        agent.counts[state.value] += 1
        if run.context is not None:
            agent.contexts[run.context] += 1
        self._emit(Resolve(
            run.id, state.value, code, message, run.worker.id if run.worker else None, run.session, run.context,
            run.entry.turns if run.entry else 0, now - (run.started_at if run.worker else run.queued_at), cause,
            agent.id, run.why(now), agent.quarantined_until - now if code == "quarantined" else 0.0))

    def evict(self, agent: "Agent", now: float) -> None:
        """End the sessions that are too many and not in use; what is left over waits for the next turn."""
        ids = agent.sessions.surplus(agent.settings.session_max, agent.lanes)
        for id in ids:
            self.end_session(agent, id, "evicted")
        if len(ids) == BATCH:
            self._deadlines.arm(agent, now)

    def end_session(self, agent: "Agent", id: str, reason: str) -> None:
        if agent.sessions.get(id) is None:
            return
        home = agent.sessions.end(id)
        if home is not None:
            agent.idle.lightened(home)
        self._emit(EndSession(home.id if home is not None else None, id, reason, agent.id))

    def _worker_now(self, agent: "Agent", run: Run, session: Session | None) -> Worker | None:
        """The worker on which a run that nobody waits before can start at once."""
        if _blocked(agent, run, session):
            return None
        home = session.live_home if session is not None else None
        if home is None:
            return agent.idle.best()
        return home if home.open else None

    def _next_lane(self, agent: "Agent", worker: Worker) -> Lane | None:
        own = next(iter(worker.lanes), None)
        anyone = next(iter(agent.rotation), None) if not worker.outdated else None
        if own is None or (anyone is not None and anyone.ticket < own.ticket):
            return anyone
        return own

    def _wait(self, agent: "Agent", run: Run, lane: Lane | None, now: float) -> None:
        settings = agent.settings
        full = self.queues.refusal(agent, run)
        if full:
            self._refuse(agent, run, "overloaded", full, now)
            return
        if lane is not None and len(lane.runs) >= settings.session_queue_size and not run.readmitted:
            self._refuse(agent, run, "session-queue-full", f"{settings.session_queue_size} runs of this session are "
                         "waiting already; try again later", now)
            return
        self.queues.add(agent, run)
        self._deadlines.arm(agent, run.queue_deadline)
        if lane is not None:
            lane.runs.append(run)
            return
        lane = agent.lanes[_key(run)] = Lane(agent, _key(run), run.session)
        lane.runs.append(run)
        self._place(agent, lane, now)

    def _place(self, agent: "Agent", lane: Lane, now: float) -> None:
        """Find a lane that stands nowhere its place, starting at once what no older lane waits for."""
        while lane.runs:
            self._ticket += 1
            lane.ticket = self._ticket
            lane.parked = False
            run = lane.runs[0]
            session = agent.sessions.get(lane.session) if lane.session is not None else None
            if _blocked(agent, run, session):
                lane.parked = True
                return
            home = session.live_home if session is not None else None
            if _cold(run, session):
                self._pop_head(agent, lane)
                self._refuse(agent, run, "context-not-warm", COLD, now)
                continue
            worker = agent.idle.best() if home is None else home
            if worker is None or not worker.open or worker.lanes or (agent.rotation and not worker.outdated):
                self._stand(agent, lane, home, now)
                return
            self._pop_head(agent, lane)
            self._start(agent, run, worker, now, lane)
        self._forget(agent, lane, now)

    def _stand(self, agent: "Agent", lane: Lane, home: Worker | None, now: float) -> None:
        """Put the lane where those will find it who may serve its head."""
        if home is None:
            agent.rotation[lane] = None
            return
        lane.home = home
        home.lanes[lane] = None
        run = lane.runs[0]
        if not run.waits_for_home:
            lane.patience_at = max(run.queued_at, lane.patient_from) + agent.settings.patience_s
            if lane.patience_at <= now and not home.open:
                self._roam(agent, lane, now)
            else:
                self._deadlines.arm(lane, lane.patience_at)

    def _roam(self, agent: "Agent", lane: Lane, now: float) -> None:
        """The head has waited for its home long enough: any worker may take it, its home still the first."""
        worker = agent.idle.best()
        if worker is None:
            agent.rotation[lane] = None
        else:
            self._serve(agent, lane, worker, now)

    def _serve(self, agent: "Agent", lane: Lane, worker: Worker, now: float) -> None:
        self._unplace(agent, lane)
        run = self._pop_head(agent, lane)
        self._start(agent, run, worker, now, lane)
        self._place(agent, lane, now)

    def _start(self, agent: "Agent", run: Run, worker: Worker, now: float, lane: Lane | None = None) -> None:
        run.move(RunState.STARTED)
        run.idle = len(agent.idle)
        run.worker = worker
        run.started_at = now
        run.deadline = now + run.timeout_s
        worker.runs[run.id] = run
        agent.started += 1
        agent.outdated_runs += worker.outdated
        if len(worker.runs) >= worker.capacity:
            agent.idle.discard(worker)
        self._deadlines.arm(worker, run.deadline)
        turn = 0
        if run.session is not None:
            run.entry, run.context = agent.sessions.start(run.session, worker, now)
            turn = run.entry.turns + 1
            if run.context in ("new", "lost"):
                self._session_began(agent, lane, now)
        self._emit(Dispatch(worker.id, run.id, run.session, run.context, turn, run.timeout_s))

    def _leave(self, agent: "Agent", run: Run, worker: Worker) -> None:
        """The opposite of `_start`, as far as the worker is concerned."""
        del worker.runs[run.id]
        if worker.capacity > 1:  # else it was not idle
            agent.idle.lightened(worker)
        agent.started -= 1
        agent.owed.discard(run.id)
        agent.outdated_runs -= worker.outdated

    def _session_began(self, agent: "Agent", lane: Lane | None, now: float) -> None:
        """A session has a home since now: its waiting runs have patience from here."""
        if lane is not None:
            lane.patient_from = now
        self._deadlines.arm(agent, now + agent.settings.session_ttl_s)

    def _interrupt(self, agent: "Agent", run: Run, lane: Lane | None, now: float) -> None:
        """Stop whatever the session does or waits for, so that `run` is next."""
        self._stop_all(agent, run.session, now)
        # the last first, so that none of them takes the place of another meanwhile
        for other in reversed(list(lane.runs)) if lane is not None else ():
            self.withdraw(agent, other, RunState.CANCELLED, "cancelled", "interrupted by a later run", now)

    def _stop_all(self, agent: "Agent", session: str | None, now: float) -> None:
        for worker in list(agent.workers.values()):
            for run in list(worker.runs.values()):
                if run.session == session:
                    self.stop(run, "cancelled", now)

    def _overlaps_after_all(self, agent: "Agent", lane: Lane, now: float) -> None:
        """The head of the lane came while nobody knew whether its session has a run. What came after it knew of it."""
        head, session = lane.runs[0], agent.sessions.get(lane.key)
        if session is None or not session.running:
            return
        if head.overlap == "reject" and not head.readmitted:
            self._pop_head(agent, lane)
            self._refuse(agent, head, "session-busy", BUSY, now)
        elif head.overlap == "interrupt":
            self._stop_all(agent, lane.session, now)

    def _refuse(self, agent: "Agent", run: Run, code: str, message: str, now: float) -> None:
        self.resolve(agent, run, RunState.REJECTED, code, message, now)

    def _pop_head(self, agent: "Agent", lane: Lane) -> Run:
        run = lane.runs.popleft()
        self.queues.remove(agent, run)
        return run

    def _unplace(self, agent: "Agent", lane: Lane) -> None:
        agent.rotation.pop(lane, None)
        if lane.home is not None:
            lane.home.lanes.pop(lane, None)
            lane.home = None
        self._deadlines.forget(lane)

    def _forget(self, agent: "Agent", lane: Lane, now: float) -> None:
        self._unplace(agent, lane)
        agent.lanes.pop(lane.key, None)
        if lane.session is not None:
            agent.sessions.touch(lane.session, now)


def _cold(run: Run, session: Session | None) -> bool:
    """Whether the run wants memory that is gone."""
    return run.require_warm and session is not None and session.live_home is None


def _unsettled(agent: "Agent", session: str | None) -> bool:
    """Whether somebody who has not been heard yet may be the session's home."""
    return agent.adoption is not None and session is not None


def _blocked(agent: "Agent", run: Run, session: Session | None) -> bool:
    """Whether no worker may have the run, whoever is free."""
    overlaps = session is not None and session.running > 0 and run.overlap in EXCLUSIVE
    return overlaps or _unsettled(agent, run.session)


def _key(run: Run) -> str:
    """The lane a run stands in. Without a session it is its own; a space keeps that apart from session ids."""
    return run.session if run.session is not None else f"run {run.id}"
