"""Workers that are made to die: aborted first, so that they tell where they are stuck, then killed."""

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.orders import ABORT_S, KILL_RETRY_S
from orpheusd.core.pool import Policy
from tests.unit.core_world import CoreWorld, all_of, only


def test_a_worker_that_the_kernel_does_not_let_go_is_replaced() -> None:
    # fault 10
    world = CoreWorld()
    [worker] = world.deploy(max_workers=1)
    world.request()
    world.tell(ev.WorkerMisbehaved(worker, "nonsense"))
    world.wait(KILL_RETRY_S)
    world.start_all()
    assert world.state_of(worker) == "killing" and len(world.ready()) == 1
    world.run()


def test_a_worker_that_does_not_stop_is_aborted_and_then_killed() -> None:
    # fault 11
    world = CoreWorld(Policy(grace_s=2.0))
    [worker] = world.deploy(timeout_s=10.0)
    run = world.request()
    world.wait(12.0)
    assert world.effects[-2] == ef.AbortWorker(worker, "a run timed out and did not stop within 2 s")
    world.wait(ABORT_S - 0.001)
    assert all_of(world.effects, ef.KillWorker) == []
    world.wait(0.001)
    assert only(world.effects, ef.KillWorker).worker == worker and world.state_of(worker) == "killing"
    world.die(worker)
    assert world.outcome(run) == ("timed-out", "timed-out")
    assert "signal 9" in world.answer(run).message and f"orpheusctl show {run}" in world.answer(run).message


def test_the_place_of_an_aborted_worker_is_filled_at_once() -> None:
    # fault 10
    world = CoreWorld(Policy(grace_s=2.0))
    [worker] = world.deploy(max_workers=1)
    first, second = world.request(timeout_s=1.0), world.request()
    world.wait(3.0)
    assert world.state_of(worker) == "killing" and world.waits(second)
    world.start_all()
    world.end(second)
    assert world.worker_of(second) != worker and world.worker_of(first) == worker
    assert len(all_of(world.effects, ef.ForkWorker)) == 2
    world.die(worker)
    assert len(all_of(world.effects, ef.ForkWorker)) == 2, "its death vacates no other place"
