"""What must hold after every event, whatever has happened before. Called in tests and with `--debug`.

Each line of `check` is a promise of the design: one owner, at most once, nothing waits without a deadline,
never more workers than the limit.
"""

from orpheusd.core.agent import Agent, AgentState
from orpheusd.core.restart import INTENSITY
from orpheusd.core.run import RunState
from orpheusd.core.supervisor import Supervisor
from orpheusd.core.worker import ProcessState, Worker

_MAY_HAVE_RUNS = (ProcessState.STARTING, ProcessState.READY, ProcessState.DRAINING, ProcessState.KILLING)


class BrokenInvariant(AssertionError):
    """Something that must hold does not. It is a bug in the core."""


def check(supervisor: Supervisor) -> None:
    """Raises BrokenInvariant with the first thing that does not hold."""
    seen: set[str] = set()
    for agent in supervisor.agents.values():
        _check_queue(agent, seen)
        _check_workers(agent, supervisor, seen)
        _check_sessions(agent)
        _check_pool(agent)
    held = sum(agent.waiting_bytes for agent in supervisor.agents.values())
    _hold(supervisor.router.queues.held_bytes == held, "the inputs that wait are not those of the agents")
    _hold(seen == set(supervisor.runs), f"runs known {sorted(supervisor.runs)} are not the runs held {sorted(seen)}")
    timed = supervisor.deadlines.next() is not None
    _hold(timed or not _anything_waits(supervisor), "something waits without a deadline")


def _check_queue(agent: Agent, seen: set[str]) -> None:
    in_lanes: list[str] = []
    for key, lane in agent.lanes.items():
        _hold(bool(lane.runs), f"lane {key} is empty")
        _hold(lane.key == key, f"lane {lane.key} is filed under {key}")
        in_lanes += [run.id for run in lane.runs]
        at_home = lane.home is not None and lane in lane.home.lanes
        places = (at_home or lane in agent.rotation) + lane.parked
        _hold(places == 1, f"lane {key} stands in {places} places")
        _hold(lane.home is None or lane.home.alive, f"lane {key} waits for a dead home")
        session = agent.sessions.get(key)
        if lane.parked:
            runs = session is not None and session.running > 0
            _hold(runs or agent.adoption is not None, f"lane {key} is parked and nothing runs")
        adopting = agent.adoption is not None and lane.session is not None
        _hold(lane.parked or not adopting, f"lane {key} has a place before it is known where its session lives")
        if lane in agent.rotation:
            _hold(not agent.idle, f"lane {key} waits while {sorted(agent.idle)} are idle")
            _hold(lane.home is None or not lane.runs[0].waits_for_home, f"lane {key} roams and may not leave its home")
        if at_home and lane.home is not None:
            _hold(not lane.home.open, f"lane {key} waits for {lane.home.id}, which is open")
    _hold(sorted(in_lanes) == sorted(agent.waiting), "the waiting runs are not those in the lanes")
    held = sum(run.input_bytes for run in agent.waiting.values())
    _hold(agent.waiting_bytes == held, f"{agent.id} counts {agent.waiting_bytes} bytes of {held} that wait")
    for run in agent.waiting.values():
        _hold(run.state is RunState.QUEUED and run.worker is None, f"{run.id} waits and is {run.state.value}")
        _hold(run.id not in seen, f"{run.id} is held twice")
        seen.add(run.id)


def _check_workers(agent: Agent, supervisor: Supervisor, seen: set[str]) -> None:
    for id, worker in agent.workers.items():
        _hold(worker.alive and supervisor.pool.workers.get(id) is worker, f"{id} is held though dead")
        _hold(not worker.runs or worker.state in _MAY_HAVE_RUNS, f"{id} is {worker.state.value} and has runs")
        _hold(len(worker.runs) <= worker.capacity or worker.adopted, f"{id} has more runs than it may")
        _hold(not worker.runs or worker.adopted or worker.state is not ProcessState.STARTING,
              f"{id} has runs and has not started")
        _hold(worker.sessions >= 0, f"{id} has fewer than no sessions")
        free = worker.open and not worker.outdated
        _hold((id in agent.idle) == free, f"{id} is {worker.state.value} and idle is {id in agent.idle}")
        for run in worker.runs.values():
            _hold(run.state is RunState.STARTED and run.worker is worker, f"{run.id} is on {id} and does not know it")
            _hold(run.id not in seen, f"{run.id} is held twice")
            seen.add(run.id)
        if worker.state is not ProcessState.READY and worker.state is not ProcessState.DRAINING:
            _hold(worker.deadline is not None, f"{id} is {worker.state.value} without a deadline")
    for id in agent.idle:
        _hold(id in agent.workers, f"{id} is idle and does not exist")
    by_load = min((agent.workers[id] for id in agent.idle), key=lambda w: (w.sessions, len(w.runs)), default=None)
    _hold(agent.idle.best() is by_load, f"{by_load and by_load.id} is the best idle worker and is not taken for it")
    started = sum(len(worker.runs) for worker in agent.workers.values())
    _hold(all(id in supervisor.runs for id in agent.owed), f"{agent.id} is owed runs that are not there")
    _hold(agent.started == started, f"{agent.id} counts {agent.started} started runs of {started}")
    apart = sum(len(worker.runs) for worker in agent.workers.values() if worker.outdated)
    _hold(agent.outdated_runs == apart, f"{agent.id} counts {agent.outdated_runs} runs of {apart} on outdated workers")


def _check_sessions(agent: Agent) -> None:
    homes: dict[Worker, int] = {}
    saved: dict[Worker, int] = {}
    homeless = 0
    for id, session in agent.sessions.items():
        home = session.live_home
        _hold(session.running >= 0, f"session {id} has fewer than no runs")
        if home is None:
            homeless += 1
        else:
            _hold(agent.workers.get(home.id) is home, f"session {id} lives on {home.id}, which is not the agent's")
            homes[home] = homes.get(home, 0) + 1
            saved[home] = saved.get(home, 0) + session.saved
    _hold(agent.sessions.homeless == homeless, f"{agent.id} counts {agent.sessions.homeless} homeless of {homeless}")
    for worker in agent.workers.values():
        _hold(worker.saved == saved.get(worker, 0), f"{worker.id} miscounts its saved sessions")
        _hold(worker.sessions == homes.get(worker, 0),
              f"{worker.id} counts {worker.sessions} sessions of {homes.get(worker, 0)}")
    surplus = len(agent.sessions) - agent.settings.session_max
    in_use = sum(1 for id, s in agent.sessions.items() if s.running or id in agent.lanes)
    _hold(surplus <= in_use or agent.adoption is not None, f"{agent.id} holds {surplus} sessions too many")


def _check_pool(agent: Agent) -> None:
    filled = [slot for slot in agent.slots if slot.worker is not None]
    _hold(len(agent.slots) <= max(agent.settings.max_workers, 1), f"{agent.id} has too many slots")
    _hold(len(filled) + len(agent.vacant) == len(agent.slots), f"{agent.id} has lost count of its vacant slots")
    _hold(all(slot in agent.slots and slot.worker is None for slot in agent.vacant), "a vacant slot is not")
    owners = [slot.worker for slot in [*agent.slots, agent.trial_slot] if slot.worker is not None]
    _hold(len(owners) == len(set(owners)), f"{agent.id} has one worker in two slots")
    for worker in agent.workers.values():
        _hold(not worker.outdated or worker not in owners, f"{worker.id} is outdated and in a slot")
        if worker.state is ProcessState.READY:
            _hold(worker.outdated or worker in owners, f"{worker.id} is ready and in no slot")
    _hold(all(agent.workers[id].slot.worker is agent.workers[id] for id in agent.worn), "what is worn is of no pool")
    lingering = [w for w in agent.workers.values() if w.outdated and w.state is ProcessState.READY]
    settled = agent.adoption is None
    most = max(agent.settings.max_workers, 1)
    _hold(len(lingering) <= most or not settled, f"{len(lingering)} outdated workers of {agent.id} stay")
    for worker in lingering if settled else ():
        _hold(bool(worker.runs) or worker.deadline is not None, f"{worker.id} is outdated and may stay for ever")
    _hold(not agent.given_up or agent.previous is not None, f"{agent.id} is given up, and there is nothing before it")
    _hold(not agent.given_up or agent.candidate is not None, f"{agent.id} is given up, and nothing takes its place")
    if agent.state is AgentState.QUARANTINED:
        _hold(not agent.waiting, f"{agent.id} is quarantined and lets runs wait")
    _hold(len(agent.record) <= INTENSITY, "the record of failures grows")


def _anything_waits(supervisor: Supervisor) -> bool:
    return any(
        agent.waiting or agent.started or agent.adoption is not None or agent.state is AgentState.QUARANTINED
        or any(w.state is not ProcessState.READY for w in agent.workers.values())
        for agent in supervisor.agents.values()
    )  # fmt: skip


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise BrokenInvariant(what)
