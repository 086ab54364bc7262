"""A session whose home cannot be heard because a run keeps it busy: what is asked for meanwhile, and afterwards."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.adoption import ADOPT_S
from tests.unit.adoption_world import T, adopted, hear, load, unfinished
from tests.unit.core_world import CoreWorld, all_of, only


def begun(*seen: ev.Seen, **settings: float | str) -> CoreWorld:
    """`w1` has a run of the session `s`, says the log, and nobody has dialled."""
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"), *seen), runs=(unfinished("r", "w1", "s", "warm"),), **settings)
    return world


def busy(*seen: ev.Seen, **settings: float | str) -> CoreWorld:
    """The same, and its template has dialled."""
    world = begun(*seen, **settings)
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    return world


def its_run(world: CoreWorld) -> list[ef.Effect]:
    return hear(world, "w1", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w1", "s", "warm", 90.0),))


@pytest.mark.parametrize("silent", [False, True])
def test_a_run_that_may_not_overlap_is_refused_when_it_is_known_that_it_does(silent: bool) -> None:
    world = begun()
    late = world.request("s", overlap="reject")
    assert world.waits(late)
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2")
    if silent:
        world.wait(ADOPT_S)
    else:
        its_run(world)
    assert world.outcome(late) == ("rejected", "session-busy")
    assert all_of(world.effects, ef.Dispatch) == []


def test_a_run_that_interrupts_stops_the_one_that_is_found() -> None:
    world = begun()
    late = world.request("s", overlap="interrupt")
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    assert all_of(world.effects, ef.CancelRun) == []
    hear(world, "w2")
    its_run(world)
    assert only(world.effects, ef.CancelRun) == ef.CancelRun("w1", "r", "cancelled") and world.waits(late)
    world.end("r", "cancelled")
    assert (world.worker_of(late), world.context_of(late)) == ("w1", "warm")


def test_a_run_that_interrupts_stops_one_that_nobody_knew_of() -> None:
    """Neither the log nor anybody else had told of it when the adoption was over."""
    world = busy(ev.Seen("other", 1, 5.0, "w1"))
    hear(world, "w2")
    world.wait(ADOPT_S)
    late = world.request("other", overlap="interrupt", affinity="strict")
    assert world.waits(late)
    hear(world, "w1", ev.Seen("other", 1, 0.0), ev.Seen("s", 1, 0.0),
         runs=(unfinished("r", "w1", "s", "warm"), unfinished("x", "w1", "other", "warm")))
    assert only(world.effects, ef.CancelRun).run == "x"


def test_a_session_does_not_end_while_its_home_cannot_be_told() -> None:
    world = busy(ev.Seen("idle", 3, 5.0, "w1"), session_ttl_s=50.0, session_max=1)
    hear(world, "w2")
    world.wait(ADOPT_S)
    assert world.agent().adoption is None
    world.tell(ev.SessionEndRequested("a", "idle"))
    world.wait(60.0)
    assert world.agent().sessions.get("idle") is not None and all_of(world.effects, ef.EndSession) == []
    hear(world, "w1", ev.Seen("s", 1, 0.0), ev.Seen("idle", 3, 65.0), runs=(unfinished("r", "w1", "s", "warm"),))
    assert only(world.effects, ef.EndSession).worker == "w1", "it is heard, and the session is old"
    assert world.agent().sessions.get("idle") is None


@pytest.mark.parametrize("how", ["dies", "is killed"])
def test_sessions_of_a_home_that_was_never_heard_end_in_their_time(how: str) -> None:
    world = busy(ev.Seen("idle", 3, 5.0, "w1"), session_ttl_s=50.0)
    hear(world, "w2")
    world.wait(60.0)
    assert world.agent().sessions.get("idle") is not None
    if how == "dies":
        world.die("w1")
    else:
        world.tell(ev.WorkerMisbehaved("w1", "it is no worker"))
    world.wait(0.0)
    assert world.agent().sessions.get("idle") is None


def test_the_time_that_a_run_has_taken_includes_that_before_the_daemons_death() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r1", "w1")._replace(elapsed_s=30.0), unfinished("r2", "w9")._replace(elapsed_s=7.0)))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    world.wait(1.0)
    hear(world, "w1", runs=(unfinished("r1", "w1")._replace(elapsed_s=32.0),))
    assert world.answer("r2").duration_s == 7.0, "it went with its worker"
    world.wait(1.0)
    world.end("r1")
    assert world.answer("r1").duration_s == 33.0


def test_adopted_workers_have_their_memory_already() -> None:
    world = adopted("w1", "w2", "w3", max_workers=5, memory_mb=100, min_workers=1)
    world.free_mb = 150.0
    for _ in range(4):
        world.request()
    assert len(all_of(world.effects, ef.ForkWorker)) == 1
