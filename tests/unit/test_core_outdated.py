"""Outdated workers: what a newer version has replaced stays for its sessions, and for nothing else."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import AgentState
from orpheusd.core.restart import BACKOFF_FIRST_S
from tests.unit.core_world import CoreWorld, all_of, only

DRAIN_S = 300.0


def homes(world: CoreWorld, count: int, **settings: float | str) -> list[str]:
    """An agent with `count` workers, each the home of a session: s0 on the first, and so on."""
    workers = world.deploy(workers=count, **settings)
    runs = [world.request(f"s{number}") for number in range(count)]
    homes = [str(world.worker_of(run)) for run in runs]
    for run in runs:
        world.wait(1.0)
        world.end(run)
    assert sorted(homes) == sorted(workers)
    return homes


def test_a_session_stays_with_the_version_that_has_its_memory() -> None:
    world = CoreWorld()
    world.deploy()
    home = world.run("s")
    new = world.redeploy()
    assert world.run("s") == home and world.effects[-1].context == "warm"  # type: ignore[union-attr]
    assert world.run("other") == new and world.run() == new
    assert world.state_of(home) == "ready"


def test_workers_without_sessions_leave_at_once() -> None:
    world = CoreWorld()
    world.deploy(workers=3)
    home = world.run("s")
    busy = world.request()
    with_run = world.worker_of(busy)
    world.redeploy()
    states = {id: world.state_of(id) for id, worker in world.agent().workers.items() if worker.outdated}
    assert sorted(states.values()) == ["draining", "ready", "stopping"]
    assert states[home] == "ready" and with_run is not None and states[with_run] == "draining"
    world.end(busy)
    assert world.outcome(busy) == ("completed", "") and world.state_of(with_run) == "stopping"


def test_a_worker_that_holds_nobody_any_more_serves_nobody() -> None:
    """Neither a new session, nor a run without one, nor one that another home's session spills."""
    world = CoreWorld()
    first, second = homes(world, 2, patience_s=0.1)
    new = world.redeploy(max_workers=2, patience_s=0.1)  # a second one is forked below, and does not get ready
    busy = world.request("s0")
    blocker = world.request()
    assert (world.worker_of(busy), world.worker_of(blocker)) == (first, new)
    waiting = [world.request(), world.request("fresh"), world.request("s0")]
    world.wait(1.0)
    assert all(world.waits(run) for run in waiting) and world.agent().workers[second].open
    world.end(blocker)
    assert world.worker_of(waiting[0]) == new


def test_a_run_that_leaves_its_outdated_home_spills_to_the_new_version() -> None:
    world = CoreWorld()
    [home] = homes(world, 1, patience_s=0.1)
    new = world.redeploy(patience_s=0.1)
    running, second = world.request("s0"), world.request("s0")
    world.wait(0.1)
    assert (world.worker_of(running), world.worker_of(second)) == (home, new)
    assert world.context_of(second) == "spilled"


def test_runs_wait_for_an_outdated_home_as_for_any_other() -> None:
    world = CoreWorld()
    [home] = homes(world, 1, affinity="strict")
    new = world.redeploy(max_workers=1, affinity="strict")
    running, waiting, blocker, behind = (world.request(session) for session in ("s0", "s0", None, None))
    assert world.worker_of(blocker) == new and world.waits(waiting) and world.waits(behind)
    world.end(running)
    assert world.worker_of(waiting) == home and world.context_of(waiting) == "warm" and world.waits(behind)


def test_a_parked_run_starts_on_its_outdated_home_though_others_wait_for_the_pool() -> None:
    world = CoreWorld()
    [home] = homes(world, 1, patience_s=0.1)
    new = world.redeploy(max_workers=1, patience_s=0.1)
    at_home, spilled = world.request("s0"), world.request("s0")
    world.wait(0.1)
    assert world.worker_of(spilled) == new
    parked, behind = world.request("s0", overlap="queue"), world.request()
    world.end(at_home)
    assert world.waits(parked) and world.waits(behind)
    world.tell(ev.RunEnded(new, spilled, "completed", ""))
    assert world.worker_of(parked) == home and world.worker_of(behind) == new


def test_an_outdated_worker_leaves_when_no_run_has_come_for_so_long() -> None:
    world = CoreWorld()
    [home] = homes(world, 1)
    world.wait(1000.0)
    new = world.redeploy(idle_timeout_s=5000.0)
    world.wait(DRAIN_S - 1)
    long = world.request("s0", timeout_s=1000.0)
    world.wait(DRAIN_S)
    assert world.worker_of(long) == home and world.state_of(home) == "ready"
    world.end(long)
    world.wait(DRAIN_S - 0.001)
    assert world.state_of(home) == "ready"
    world.wait(0.001)
    assert world.state_of(home) == "stopping"
    late = world.request("s0")
    world.die(home)
    assert (world.worker_of(late), world.context_of(late)) == (new, "lost")
    world.end(late)
    assert world.run("s0") == new, "it has moved once"


def test_the_next_version_may_end_the_wait_earlier() -> None:
    world = CoreWorld()
    homes(world, 2)
    world.redeploy()
    world.wait(10.0)
    world.redeploy(3, drain_s=20.0)
    assert len(all_of(world.effects, ef.StopWorker)) == 1, "the worker of version 2, that has no session"
    world.wait(10.0)
    assert len(all_of(world.effects, ef.StopWorker)) == 3


@pytest.mark.parametrize(("at_once", "drain_s"), [(True, DRAIN_S), (False, 0.0)])
def test_homes_leave_at_once_where_that_is_wanted(at_once: bool, drain_s: float) -> None:
    world = CoreWorld()
    idle, busy = homes(world, 2)
    run = world.request("s1")
    world.stage(2, at_once=at_once, drain_s=drain_s)
    world.start_all()
    assert (world.state_of(idle), world.state_of(busy)) == ("stopping", "draining")
    world.end(run)
    assert world.outcome(run) == ("completed", "")


def test_a_restart_ends_the_stay_of_outdated_workers() -> None:
    world = CoreWorld()
    [home] = homes(world, 1)
    world.redeploy()
    assert world.state_of(home) == "ready"
    world.stage(2, at_once=True)
    world.start_all()
    assert world.state_of(home) == "stopping"


def test_outdated_workers_are_at_most_as_many_as_the_pool_may_have() -> None:
    world = CoreWorld()
    coldest, cold, warm, busy = homes(world, 4)
    run = world.request("s3")
    world.redeploy(max_workers=2)
    assert [world.state_of(id) for id in (coldest, cold, warm, busy)] == ["stopping", "stopping", "ready", "ready"]
    world.die(coldest)
    world.die(cold)
    world.redeploy(3, max_workers=1)
    assert [world.state_of(id) for id in (warm, busy)] == ["stopping", "ready"]
    other = world.run("s-new")
    again = world.request("s-new")
    world.redeploy(4, max_workers=1)
    assert sorted(world.state_of(id) for id in (busy, other)) == ["draining", "ready"]
    for each in (run, again):
        world.end(each)
        assert world.outcome(each) == ("completed", "")


def test_runs_on_outdated_workers_make_no_demand() -> None:
    world = CoreWorld()
    homes(world, 3)
    runs = [world.request(f"s{number}") for number in range(3)]
    world.redeploy()
    world.start_all()
    assert world.agent().demand == 0 and len(world.agent().slots) == 1
    for run in runs:
        world.end(run)
    assert world.agent().outdated_runs == 0


def test_the_old_template_stays_as_long_as_its_workers() -> None:
    world = CoreWorld()
    [home] = homes(world, 1)
    world.redeploy()
    assert all_of(world.effects, ef.StopTemplate) == []
    world.wait(DRAIN_S)
    world.die(home)
    assert only(world.effects, ef.StopTemplate).template == "t-b-1"


def test_what_an_outdated_worker_does_says_nothing_of_the_version_that_serves() -> None:
    world = CoreWorld()
    good, bad = homes(world, 2)
    new = world.redeploy()
    world.die(new)
    assert len(world.agent().record) == 1
    assert world.run("s0") == good
    assert len(world.agent().record) == 1 and world.agent().previous is not None
    world.wait(BACKOFF_FIRST_S)
    world.die(bad)
    assert len(world.agent().record) == 1 and world.agent().state is AgentState.ACTIVE


def test_removal_ends_outdated_workers_too() -> None:
    world = CoreWorld()
    idle, busy = homes(world, 2)
    run = world.request("s1")
    new = world.redeploy()
    world.tell(ev.RemovalRequested("a", "gone"))
    assert [world.state_of(id) for id in (idle, busy, new)] == ["stopping", "draining", "stopping"]
    world.end(run)
    assert world.outcome(run) == ("completed", "")
