"""How runs end before their time: cancelled, too late, or with their worker; and which of them wait again instead."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from tests.unit.core_world import CoreWorld, all_of

# Cancelling and timeouts


def test_a_waiting_run_is_cancelled_at_once() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1)
    world.request()
    run = world.request("s")
    world.tell(ev.CancelRequested(run))
    assert world.outcome(run) == ("cancelled", "cancelled")
    assert world.dispatches(run) == [] and not world.agent().lanes


def test_a_started_run_is_told_to_stop() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    run = world.request()
    assert world.tell(ev.CancelRequested(run)) == [ef.CancelRun(worker, run, "cancelled")]
    assert world.tell(ev.CancelRequested(run)) == []
    world.end(run, "cancelled")
    assert world.outcome(run) == ("cancelled", "cancelled")
    assert world.ready() == [worker]


@pytest.mark.parametrize("why", ["cancelled", "timed-out"])
def test_a_run_that_does_not_stop_costs_its_worker(why: str) -> None:
    world = CoreWorld()
    [worker] = world.deploy(timeout_s=10.0)
    run = world.request()
    if why == "cancelled":
        world.tell(ev.CancelRequested(run))
    else:
        world.wait(10.0)
    assert all_of(world.effects, ef.CancelRun) == [ef.CancelRun(worker, run, why)]
    world.wait(1.999)
    assert world.state_of(worker) == "ready"
    world.wait(0.001)
    assert world.state_of(worker) == "killing"
    world.die(worker)
    assert world.outcome(run) == (why, why)


def test_a_run_that_completes_though_told_to_stop_has_completed() -> None:
    world = CoreWorld()
    world.deploy()
    run = world.request()
    world.tell(ev.CancelRequested(run))
    world.end(run)
    assert world.outcome(run) == ("completed", "")


def test_a_run_that_waits_too_long_expires() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1, queue_timeout_s=30.0)
    world.request()
    run = world.request("s")
    world.wait(29.999)
    assert world.waits(run)
    world.wait(0.001)
    assert world.outcome(run) == ("expired", "timed-out")
    assert "30 s" in world.answer(run).message


# Death


def test_a_run_that_its_worker_was_executing_has_crashed() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    run = world.request()
    world.die(worker)
    assert world.outcome(run) == ("crashed", "worker-crashed")
    assert world.answer(run).cause == "signal 9" and "signal 9" in world.answer(run).message


def test_a_run_its_worker_never_read_waits_again_first_in_its_lane() -> None:
    world = CoreWorld()
    first, second = world.deploy(workers=2, max_workers=2)
    run = world.request("s")
    dead = world.worker_of(run) or ""
    [other] = {first, second} - {dead}
    blocking = world.occupy(other)
    later = world.request("s")
    world.die(dead, run)
    assert world.waits(run) and world.agent().sessions.get("s") is None
    assert [r.id for r in world.agent().lanes["s"].runs] == [run, later]
    world.end(blocking)
    assert [d.worker for d in world.dispatches(run)] == [dead, other]
    assert world.context_of(run) == "new"
    world.end(run)
    world.end(later)
    assert world.answer(run).turn == 1 and world.context_of(later) == "warm"


def test_an_unread_run_goes_to_an_idle_worker_at_once() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    run = world.request("s")
    world.die(home, run)
    assert world.context_of(run) == "lost"
    world.end(run)
    assert world.answer(run).turn == 2


def test_an_unread_run_that_was_told_to_stop_is_over() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    run = world.request()
    world.tell(ev.CancelRequested(run))
    world.die(worker, run)
    assert world.outcome(run) == ("cancelled", "cancelled")


def test_several_unread_runs_keep_their_order() -> None:
    world = CoreWorld()
    [worker] = world.deploy(concurrency=3, max_workers=1)
    runs = [world.request() for _ in range(3)]
    world.die(worker, *runs)
    assert list(world.agent().waiting) == runs
    world.wait(1.0)
    world.start_all()
    assert [d.run for d in all_of(world.effects, ef.Dispatch)] == runs * 2


def test_a_daemon_without_agents_stops_at_once() -> None:
    assert CoreWorld().tell(ev.ShutdownRequested()) == [ef.Stopped()]
