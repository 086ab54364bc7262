"""The pool does not grow beyond the memory that the box has left."""

from math import inf

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.pool import MEMORY_RETRY_S
from tests.unit.core_world import CoreWorld


def demand(world: CoreWorld, runs: int) -> int:
    """How many workers are started for that many runs more."""
    effects = [effect for _ in range(runs) for effect in world.tell(ev.RunRequested(world.name("r"), "a"))]
    return sum(isinstance(effect, ef.ForkWorker) for effect in effects)


def test_no_worker_is_started_that_the_box_has_no_memory_for() -> None:
    world = CoreWorld()
    world.deploy(memory_mb=100)
    world.free_mb = 99
    assert demand(world, 3) == 0
    world.free_mb = 100
    assert not world.tell(ev.TimePassed()), "what was just asked is not asked again at once"
    world.now += MEMORY_RETRY_S
    assert [type(effect) for effect in world.tell(ev.TimePassed())] == [ef.ForkWorker]


def test_what_was_just_started_has_its_memory_yet_to_take() -> None:
    world = CoreWorld()
    world.deploy(memory_mb=100, max_workers=10)
    world.free_mb = 250
    assert demand(world, 8) == 2
    world.start_all()
    world.now += MEMORY_RETRY_S
    world.free_mb = 50
    assert not world.tell(ev.TimePassed())


def test_a_short_box_is_asked_again_until_it_has_enough() -> None:
    world = CoreWorld()
    world.deploy(memory_mb=100)
    world.free_mb = 0
    demand(world, 2)
    for _ in range(3):
        world.now += MEMORY_RETRY_S
        due = world.supervisor.next_deadline()
        assert due is not None and due <= world.now
        assert not world.tell(ev.TimePassed())
    world.free_mb = inf
    world.now += MEMORY_RETRY_S
    assert [type(effect) for effect in world.tell(ev.TimePassed())] == [ef.ForkWorker]


def test_the_first_workers_start_in_any_case() -> None:
    world = CoreWorld()
    world.free_mb = 0
    world.deploy(workers=3, memory_mb=100)
    world = CoreWorld()
    world.free_mb = 0
    world.deploy(workers=0, memory_mb=100)
    assert demand(world, 2) == 1, "an agent that scales to zero comes back with one"
