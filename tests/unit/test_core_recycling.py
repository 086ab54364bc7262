"""Recycling: a worker that has had enough runs, or has grown, is replaced: one at a time, and its sessions stay."""

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from tests.unit.core_world import CoreWorld, all_of, only

DRAIN_S = 300.0


def recycled(world: CoreWorld) -> list[str]:
    return [effect.worker for effect in all_of(world.effects, ef.Recycled)]


def grow(world: CoreWorld, worker: str) -> None:
    world.tell(ev.WorkerGrew(worker, 200.0))


def test_nobody_is_recycled_unless_it_is_asked_for() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    for _ in range(100):
        world.run()
    assert recycled(world) == [] and not world.supervisor.pool.workers[worker].outgrown(1e9)


def test_a_worker_is_replaced_after_its_last_run() -> None:
    world = CoreWorld()
    [first] = world.deploy(recycle_runs=3)
    world.run()
    world.run()
    assert recycled(world) == []
    world.run()
    assert only(world.effects, ef.Recycled) == ef.Recycled(first, "it has had 3 runs")
    assert world.state_of(first) == "stopping"
    world.start_all()
    [second] = world.ready()
    assert second != first and world.run() == second


def test_a_worker_that_has_grown_is_replaced_and_says_why() -> None:
    world = CoreWorld()
    [worker] = world.deploy(recycle_mb=100)
    assert not world.supervisor.pool.workers[worker].outgrown(100.0)
    assert world.supervisor.pool.workers[worker].outgrown(100.1)
    grow(world, worker)
    assert only(world.effects, ef.Recycled).why == "it uses 200 MB, more than 100 MB"
    assert not world.supervisor.pool.workers[worker].outgrown(200.0), "it is told once"


def test_its_sessions_stay_with_it_while_they_are_used() -> None:
    world = CoreWorld()
    [home] = world.deploy(recycle_runs=2)
    world.run("s")
    world.run("s")
    world.start_all()
    for _ in range(5):
        world.wait(DRAIN_S - 1.0)
        assert world.run("s") == home and world.effects[-1].context == "warm"  # type: ignore[union-attr]
    assert recycled(world) == [home], "it is recycled once"
    other = world.run("other")
    assert other != home
    world.wait(DRAIN_S)
    assert world.state_of(home) == "stopping"


def test_its_sessions_stay_though_the_version_came_by_a_restart() -> None:
    world = CoreWorld()
    world.deploy(recycle_runs=1)
    world.stage(2, at_once=True, recycle_runs=1)
    world.start_all()
    home = world.run("s")
    assert recycled(world) == [home] and world.state_of(home) == "ready"


def test_who_waits_is_not_given_to_a_worker_that_leaves() -> None:
    world = CoreWorld()
    [worker] = world.deploy(recycle_runs=1, max_workers=1)
    first, second = world.request(), world.request("s")
    world.end(first)
    assert recycled(world) == [worker] and world.waits(second)
    world.start_all()
    assert world.worker_of(second) == world.ready()[0] != worker


def test_a_run_is_not_cut_short() -> None:
    world = CoreWorld()
    [worker] = world.deploy(recycle_mb=100)
    run = world.request()
    grow(world, worker)
    assert recycled(world) == [worker] and world.state_of(worker) == "draining"
    world.wait(100.0)
    world.end(run)
    assert world.outcome(run) == ("completed", "") and world.state_of(worker) == "stopping"


def test_of_a_pool_one_is_missing_at_a_time() -> None:
    world = CoreWorld()
    workers = world.deploy(workers=3, recycle_mb=100)
    for worker in workers:
        grow(world, worker)
    assert len(recycled(world)) == 1
    forked = all_of(world.effects, ef.ForkWorker)[-1].worker
    world.tell(ev.WorkerReady(forked))
    assert len(recycled(world)) == 2, "the next is replaced when the first replacement is ready"
    world.start_all()
    assert sorted(recycled(world)) == sorted(workers)


def test_the_cheapest_to_lose_goes_first() -> None:
    world = CoreWorld()
    workers = world.deploy(workers=3, recycle_mb=100)
    blocker = world.request()
    busy = world.worker_of(blocker)
    home = world.run("s")
    [free] = [worker for worker in workers if worker not in (busy, home)]
    world.fall(free, 1)
    for worker in (str(busy), home):
        grow(world, worker)
    assert recycled(world) == [], "one is missing already"
    world.wait(1.0)
    world.start_all()
    assert recycled(world) == [home, busy]


def test_nothing_is_recycled_in_the_middle_of_a_deploy() -> None:
    world = CoreWorld()
    [worker] = world.deploy(recycle_mb=100)
    world.stage(2)
    grow(world, worker)
    assert recycled(world) == []


def test_the_death_of_a_recycled_worker_is_no_failure_of_the_agent() -> None:
    world = CoreWorld()
    [home] = world.deploy(recycle_runs=1)
    world.run("s")
    world.start_all()
    world.die(home)
    assert len(world.agent().record) == 0
