"""Scaling: up as soon as there is demand, down after a lull, the workers that are cheapest to lose first."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core.agent import Settings
from orpheusd.core.scaling import wanted_workers
from tests.unit.core_world import CoreWorld, all_of


@pytest.mark.parametrize(("demand", "settings", "wanted"), [
    (0, Settings(min_workers=0), 0),
    (0, Settings(min_workers=2), 2),
    (1, Settings(min_workers=0), 1),
    (4, Settings(), 4),
    (40, Settings(max_workers=10), 10),
    (4, Settings(scale_up_threshold=2.0), 2),
    (5, Settings(scale_up_threshold=2.0), 3),
    (9, Settings(concurrency=4), 3),
])
def test_as_many_as_the_demand_within_the_limits(demand: int, settings: Settings, wanted: int) -> None:
    assert wanted_workers(demand, settings) == wanted


def test_a_run_that_finds_nobody_idle_brings_a_worker() -> None:
    world = CoreWorld()
    world.deploy(max_workers=3)
    runs = [world.request() for _ in range(5)]
    assert len(all_of(world.effects, ef.ForkWorker)) == 3
    world.start_all()
    assert [world.waits(run) for run in runs] == [False, False, False, True, True]


def test_runs_of_one_session_that_may_not_overlap_bring_one_worker_only() -> None:
    world = CoreWorld()
    world.deploy(overlap="queue")
    for _ in range(10):
        world.request("s")
    assert len(all_of(world.effects, ef.ForkWorker)) == 1


def test_without_workers_the_first_run_brings_one() -> None:
    world = CoreWorld()
    world.deploy(workers=0, idle_timeout_s=60.0)
    run = world.request("s")
    assert world.waits(run)
    world.start_all()
    assert world.context_of(run) == "new"
    world.end(run)
    world.wait(59.999)
    assert len(world.ready()) == 1
    world.wait(0.001)
    assert world.ready() == [] and all_of(world.effects, ef.StopWorker) != []


def test_a_lull_is_as_long_as_the_setting_says_and_demand_ends_it() -> None:
    world = CoreWorld()
    world.deploy(max_workers=4, idle_timeout_s=60.0)
    runs = [world.request() for _ in range(4)]
    world.start_all()
    for run in runs:
        world.end(run)
    world.wait(59.0)
    again = [world.request() for _ in range(4)]
    for run in again:
        world.end(run)
    world.wait(59.0)
    assert all_of(world.effects, ef.StopWorker) == []
    world.wait(1.0)
    assert len(all_of(world.effects, ef.StopWorker)) == 3 and len(world.ready()) == 1


def test_those_go_first_that_are_cheapest_to_lose() -> None:
    world = CoreWorld()
    world.deploy(max_workers=4, idle_timeout_s=60.0)
    sessions = ["cold", "saved", "warm", None]
    runs = {session: world.request(session) for session in sessions}
    world.start_all()
    workers = {session: world.worker_of(run) for session, run in runs.items()}
    assert len(set(workers.values())) == 4
    for session, run in runs.items():
        world.end(run, saved=session == "saved")
        world.now += 1.0
    stopped: list[str | None] = []
    blocks = [world.occupy(workers[session] or "") for session in ("warm",)]
    for block in blocks:
        world.end(block)
    for target in (3, 2, 1):
        world.agent().settings = world.agent().settings._replace(min_workers=target)
        world.run("warm")
        world.wait(60.0)
        new = [effect.worker for effect in all_of(world.effects, ef.StopWorker)][len(stopped):]
        stopped += new
    names = {worker: session for session, worker in workers.items()}
    assert [names[worker or ""] for worker in stopped] == [None, "saved", "cold"]


def test_a_worker_with_a_run_stays_however_long_the_lull() -> None:
    world = CoreWorld()
    world.deploy(max_workers=3, idle_timeout_s=60.0, timeout_s=10_000.0)
    runs = [world.request(f"s{number}") for number in range(3)]
    world.start_all()
    for run in runs[1:]:
        world.end(run)
    world.wait(1000.0)
    assert world.ready() == [world.worker_of(runs[0])]


def test_never_fewer_than_the_least() -> None:
    world = CoreWorld()
    world.deploy(workers=2, idle_timeout_s=60.0)
    for run in [world.request() for _ in range(5)]:
        world.start_all()
        world.end(run)
    world.wait(10_000.0)
    assert len(world.ready()) == 2
