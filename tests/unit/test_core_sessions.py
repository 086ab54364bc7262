"""Sessions: what each answer says of their memory, how long they are known, and who may be forgotten."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.events import Seen
from tests.unit.core_world import CoreWorld, all_of, only


def ended(world: CoreWorld) -> list[tuple[str, str]]:
    """Sessions that were ended, and why."""
    return [(effect.session, effect.reason) for effect in all_of(world.effects, ef.EndSession)]


# Contexts


def test_the_first_run_is_new_and_the_next_ones_warm() -> None:
    world = CoreWorld()
    world.deploy(workers=3)
    runs = []
    for _ in range(3):
        runs.append(world.request("s"))
        world.end(runs[-1])
    assert [world.context_of(run) for run in runs] == ["new", "warm", "warm"]
    assert [world.answer(run).turn for run in runs] == [1, 2, 3]
    assert len({world.worker_of(run) for run in runs}) == 1


def test_without_a_session_there_is_no_context() -> None:
    world = CoreWorld()
    world.deploy()
    run = world.request()
    world.end(run)
    assert (world.dispatches(run)[0].context, world.dispatches(run)[0].turn) == (None, 0)
    assert (world.answer(run).context, world.answer(run).turn, world.answer(run).session) == (None, 0, None)


def test_a_spilled_run_leaves_the_home_where_it_is() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.occupy(home)
    spilled = world.request("s")
    world.wait(0.1)
    assert world.context_of(spilled) == "spilled" and world.worker_of(spilled) != home
    world.end(spilled)
    assert world.agent().sessions.get("s").home.id == home  # type: ignore[union-attr]
    assert world.answer(spilled).turn == 2


@pytest.mark.parametrize(("restored", "context"), [(False, "lost"), (True, "restored")])
def test_memory_that_died_is_said_to_have_died(restored: bool, context: str) -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.die(home)
    run = world.request("s")
    assert world.context_of(run) == "lost"  # what the worker is told: it looks for saved state
    world.end(run, restored=restored)
    assert world.answer(run).context == context
    new_home = world.worker_of(run)
    assert new_home != home
    world.end(again := world.request("s"))
    assert (world.answer(again).context, world.answer(again).worker, world.answer(again).turn) == ("warm", new_home, 3)
    assert world.agent().contexts == {"new": 1, context: 1, "warm": 1}


def test_a_warm_run_is_not_restored_whatever_its_worker_says() -> None:
    world = CoreWorld()
    world.deploy()
    world.run("s")
    run = world.request("s")
    world.end(run, restored=True)
    assert world.answer(run).context == "warm"


# Across a restart of the daemon


def test_a_remembered_session_is_lost_not_new() -> None:
    world = CoreWorld()
    world.deploy(sessions=(Seen("old", 4, 60.0), Seen("young", 1, 1.0)))
    assert world.agent().sessions.homeless == 2
    run = world.request("old")
    assert world.context_of(run) == "lost" and world.dispatches(run)[0].turn == 5
    world.end(run, restored=True)
    assert (world.answer(run).context, world.answer(run).turn) == ("restored", 5)
    assert world.agent().sessions.homeless == 1


def test_a_remembered_session_expires_as_if_the_daemon_had_been_there() -> None:
    world = CoreWorld()
    world.deploy(sessions=(Seen("old", 4, 60.0), Seen("young", 1, 1.0)), session_ttl_s=100.0)
    world.wait(39.9)
    assert ended(world) == []
    world.wait(0.2)
    assert ended(world) == [("old", "ttl")]
    assert only(world.effects, ef.EndSession).worker is None
    assert world.agent().sessions.homeless == 1


def test_no_more_are_remembered_than_there_may_be() -> None:
    world = CoreWorld()
    world.deploy(sessions=tuple(Seen(f"s{number}", 1, 50.0 - number) for number in range(5)), session_max=3)
    assert ended(world) == [("s0", "evicted"), ("s1", "evicted")]


# Time to live


def test_a_session_lives_exactly_its_ttl() -> None:
    world = CoreWorld()
    [worker] = world.deploy(session_ttl_s=100.0)
    world.run("s")
    world.wait(99.999)
    assert world.agent().sessions.get("s") is not None
    world.wait(0.001)
    assert world.agent().sessions.get("s") is None
    assert only(world.effects, ef.EndSession) == ef.EndSession(worker, "s", "ttl", "a")
    assert world.context_of(world.request("s")) == "new"


def test_each_run_begins_the_ttl_again() -> None:
    world = CoreWorld()
    world.deploy(session_ttl_s=100.0)
    for _ in range(3):
        world.run("s")
        world.wait(99.0)
    run = world.request("s")
    assert world.context_of(run) == "warm"


def test_the_ttl_counts_from_the_end_of_a_long_run() -> None:
    world = CoreWorld()
    world.deploy(session_ttl_s=100.0, timeout_s=1000.0)
    run = world.request("s")
    world.wait(500.0)
    assert ended(world) == []
    world.end(run)
    world.wait(99.0)
    assert ended(world) == []
    world.wait(1.0)
    assert ended(world) == [("s", "ttl")]


def test_a_session_whose_run_waits_does_not_expire() -> None:
    world = CoreWorld()
    [home] = world.deploy(session_ttl_s=100.0, max_workers=1, timeout_s=1000.0, queue_timeout_s=1000.0)
    world.run("s")
    long = world.occupy(home)
    waiting = world.request("s")
    world.wait(500.0)
    assert ended(world) == []
    world.end(long)
    assert world.context_of(waiting) == "warm"


# How many


def test_the_least_recently_used_are_evicted() -> None:
    world = CoreWorld()
    [worker] = world.deploy(session_max=3)
    for id in ("s1", "s2", "s3", "s1", "s4"):
        world.run(id)
        world.wait(1.0)
    assert ended(world) == [("s2", "evicted")]
    assert only(world.effects, ef.EndSession).worker == worker
    assert len(world.agent().sessions) == 3


def test_a_session_in_use_is_never_evicted() -> None:
    world = CoreWorld()
    first, second = world.deploy(workers=2, max_workers=2, session_max=1)
    running = world.request("running")
    home_of_waiting = world.request("waiting")
    world.request("waiting", affinity="strict")
    assert len(world.agent().sessions) == 2
    assert ended(world) == []
    world.end(home_of_waiting)  # the next run of it has started
    assert {world.worker_of(running)} <= {first, second}
    assert ended(world) == []
    world.end(running)
    assert ended(world) == [("running", "evicted")]


def test_a_new_version_with_a_smaller_limit_evicts() -> None:
    world = CoreWorld()
    world.deploy()
    for number in range(5):
        world.run(f"s{number}")
    world.stage(2, session_max=2)
    world.start_all()
    assert [id for id, _ in ended(world)] == ["s0", "s1", "s2"]


# Homeless ones, and those that are ended


def test_homeless_sessions_are_counted() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    homes = {id: world.run(id) for id in ("s1", "s2", "s3", "s4")}
    dead = homes["s1"]
    of_the_dead = [id for id, home in homes.items() if home == dead]
    assert len(of_the_dead) == 2
    world.die(dead)
    assert world.agent().sessions.homeless == 2
    world.tell(ev.SessionEndRequested("a", of_the_dead[0]))
    assert world.effects[-1] == ef.EndSession(None, of_the_dead[0], "ended", "a")
    assert world.agent().sessions.homeless == 1
    world.run(of_the_dead[1])
    assert world.agent().sessions.homeless == 0


def test_an_ended_session_is_new_again() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    world.run("s")
    world.tell(ev.SessionEndRequested("a", "s"))
    assert world.effects[-1] == ef.EndSession(worker, "s", "ended", "a")
    world.end(run := world.request("s"))
    assert (world.answer(run).context, world.answer(run).turn) == ("new", 1)


def test_a_session_in_use_is_not_ended() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1)
    first, second = world.request("s"), world.request("t")
    for id in ("s", "t"):
        assert world.tell(ev.SessionEndRequested("a", id)) == []
    assert world.supervisor.ignored == 2
    world.end(first)
    world.end(second)
    assert world.context_of(second) == "new"


def test_a_session_whose_run_waits_is_not_ended() -> None:
    world = CoreWorld()
    [home] = world.deploy(max_workers=1)
    world.run("s")
    blocking = world.occupy(home)
    run = world.request("s")
    assert world.tell(ev.SessionEndRequested("a", "s")) == [] and world.supervisor.ignored == 1
    world.end(blocking)
    assert world.context_of(run) == "warm"


def test_saved_sessions_are_counted_at_their_home() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    world.run("s", saved=True)
    world.run("s", saved=True)
    world.run("t")
    counted = world.supervisor.pool.workers[worker]
    assert (counted.sessions, counted.saved) == (2, 1)
    world.tell(ev.SessionEndRequested("a", "s"))
    assert (counted.sessions, counted.saved) == (1, 0)
