"""What must be true between two events, by the witness's account: nothing waits in vain, nothing is forgotten.

The core's own statement of the same is `orpheusd.core.invariants`; these laws do not look at how it keeps count,
but for two of its answers: when it wants to be woken, and which sessions it knows.
"""

from collections.abc import Iterator
from math import inf, nextafter

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.supervisor import Supervisor
from tests.property.records import AgentRecord, hold
from tests.property.witness import Witness

#: A lane that was served goes to the end of the line; once it may have stood before, once it may have been last.
MOST_OVERTAKEN = 3


def check_laws(witness: Witness, supervisor: Supervisor, effects: list[ef.Effect]) -> None:
    """Raises BrokenPromise with the first law that does not hold."""
    for agent in witness.agents.values():
        _check_sessions(witness, supervisor, agent, effects)
        if not witness.stopping and agent.removal is None:
            _check_waiting(witness, agent)
            _check_size(witness, agent)
            hold(not agent.given_up or agent.candidate, f"{agent.id} is given up, and nothing is to take its place")
    wake_up = supervisor.next_deadline()
    for at, what in _deadlines(witness):
        if isinstance(witness.event, ev.TimePassed):
            hold(at > witness.now, f"{what} was due at {at}, and nothing has been done at {witness.now}")
        hold(wake_up is not None and wake_up <= max(at, witness.now),
             f"{what} is due at {at}, and the next wake-up is at {wake_up}")


def _check_waiting(witness: Witness, agent: AgentRecord) -> None:
    """Nobody waits while a worker is free that may serve them, and nobody is passed over again and again."""
    hold(not agent.waiting or agent.quarantined_until is None, f"{agent.id} is quarantined, and lets runs wait")
    for run in agent.heads():
        home = witness.home_of(agent, run)
        session = agent.session_of(run)
        if session is not None and run.overlap == "interrupt" and agent.adoption is None:
            going = [other.id for other in session.running.values() if not other.stopping]
            hold(not going, f"{run.id} is to interrupt {going}, and they were not told")
        if agent.blocks(run):
            continue
        hold(session is None or home is not None or not run.warm, f"{run.id} waits for memory that is gone")
        hold(home is None or not home.open, f"{run.id} waits for its home, which is open")
        if home is None or witness.may_roam(agent, run):
            free = [worker.id for worker in witness.open_workers(agent.id)]
            hold(not free, f"{run.id} waits while {free} are free")
        most = run.overtaken_by.most_common(1)
        hold(not most or most[0][1] <= MOST_OVERTAKEN, f"{run.id} was passed over: {most}")


def _check_size(witness: Witness, agent: AgentRecord) -> None:
    alive = [w for w in witness.workers.values() if w.agent == agent.id and not w.leaving and not w.doomed]
    staying = [worker for worker in alive if worker.outdated_at is None]
    trial = [w for w in staying if w.template == agent.candidate]
    most = agent.settings.max_workers
    hold(len(staying) - len(trial) <= most and len(trial) <= 1, f"{agent.id} has {len(staying)} workers of {most}")
    old = [worker for worker in alive if worker.outdated_at is not None and not worker.silent]
    hold(len(old) <= most or agent.adoption, f"{agent.id} keeps {len(old)} outdated workers of {most}")
    if witness.known and isinstance(witness.event, ev.RunRequested) and witness.event.run in agent.waiting:
        run = agent.waiting[witness.event.run]
        mates = [other for other in agent.waiting.values() if other.lane == run.lane]
        hold(not witness.too_full(agent, run), f"{run.id} waits, and the queue was full")
        hold(len(mates) <= max(agent.settings.session_queue_size, 1), f"{len(mates)} runs of {run.lane} wait")


def _check_sessions(witness: Witness, supervisor: Supervisor, agent: AgentRecord, effects: list[ef.Effect]) -> None:
    """Sessions are forgotten for three reasons only, their homes hear of it, and the account of homes is the same."""
    known = supervisor.agents[agent.id].sessions
    told = {effect.session: effect.reason for effect in effects
            if isinstance(effect, ef.EndSession) and effect.agent == agent.id}
    gone = {id: session for id, session in agent.sessions.items() if known.get(id) is None}
    hold(set(told) == set(gone), f"{sorted(told)} were ended, and {sorted(gone)} are gone")
    hold(not gone or agent.adoption is None, f"{sorted(gone)} are forgotten, and their homes may not have been heard")
    for id, session in gone.items():
        hold(not agent.in_use(id), f"session {id} is forgotten though it is in use")
        hold(not witness.silent_home(session), f"session {id} is forgotten, and its home could not be told")
        asked = witness.event == ev.SessionEndRequested(agent.id, id)
        looked_at = isinstance(witness.event, ev.TimePassed) or agent.settled_at == witness.now
        old = looked_at and session.last_used + agent.settings.session_ttl_s <= witness.now
        if not asked and not old:
            hold(len(agent.sessions) > agent.settings.session_max, f"session {id} is forgotten without a cause")
            later = [id for id, other in agent.sessions.items() if id not in gone and not agent.in_use(id)
                     and not witness.silent_home(other) and other.last_used < session.last_used]
            hold(not later, f"session {id} is evicted before {later}")
        reason = "ended" if asked else "ttl" if old else "evicted"
        hold(told[id] == reason, f"{id} is ended for {told[id]}, and it is {reason}")
    for id in gone:
        del agent.sessions[id]
    for id, kept in known.items():
        own = agent.sessions.get(id)
        hold(own is not None, f"session {id} is known though it never ran")
        assert own is not None
        home = kept.live_home.id if kept.live_home is not None else None
        true_home = own.home if own.home in witness.workers else None
        hold(home == true_home, f"the home of {id} is {true_home}, not {home}")


def _deadlines(witness: Witness) -> Iterator[tuple[float, str]]:
    """Every time at which something must be done, and for what."""
    for template in witness.templates.values():
        if template.deadline is not None:
            yield template.deadline, f"{template.id}, {template.state},"
    for worker in witness.workers.values():
        if worker.deadline is not None:
            yield worker.deadline, f"{worker.id}, {worker.state},"
        if worker.doomed:
            continue
        settled = witness.agents[worker.agent].adoption is None
        leaves_at = witness.leaves_at(worker) if worker.lingers and settled else None
        if leaves_at is not None:
            yield leaves_at, f"the stay of {worker.id}"
        for run in worker.runs.values():
            yield run.deadline if run.kill_at is None else run.kill_at, f"{run.id} on {worker.id}"
            if worker.drain_deadline is not None and not run.stopping:
                yield worker.drain_deadline, f"the drain of {worker.id}"
    for agent in witness.agents.values():
        if agent.removal is None and not witness.stopping:
            yield from _deadlines_of(witness, agent)


def _deadlines_of(witness: Witness, agent: AgentRecord) -> Iterator[tuple[float, str]]:
    for run in agent.waiting.values():
        yield run.queue_deadline, f"{run.id}, waiting,"
    for run in agent.heads():
        session, home = agent.session_of(run), witness.home_of(agent, run)
        blocked = agent.blocks(run)
        # when a late timer gave up a run of the session, its patience may have begun before
        late = isinstance(witness.event, ev.TimePassed) and session is not None and session.unparked_at == witness.now
        patient = witness.impatient_at(agent, run) > witness.now
        if home is not None and not blocked and run.roams and patient and not late:
            yield witness.impatient_at(agent, run, latest=True), f"the patience of {run.id}"
    for id, session in agent.sessions.items():
        if not agent.in_use(id) and agent.adoption is None and not witness.silent_home(session):
            due, home = session.last_used + agent.settings.session_ttl_s, witness.workers.get(session.home)
            if home is not None and home.doomed_at == witness.now:
                due = max(due, nextafter(witness.now, inf))  # it may have been silent until now: the next turn looks
            yield due, f"session {id}"
    if agent.adoption is not None and not agent.adoption.templates:
        yield agent.adoption.deadline, f"the adoption of {agent.id}"
    if agent.quarantined_until is not None:
        yield agent.quarantined_until, f"the quarantine of {agent.id}"
