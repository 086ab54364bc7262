"""Adoption: an agent gets back what an earlier daemon left, and nobody who may know is passed over."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.adoption import ADOPT_S
from orpheusd.core.agent import Settings
from tests.unit.adoption_world import T, adopted, hear, load, unfinished
from tests.unit.core_world import CoreWorld, all_of, only

# What is there is used

def test_the_workers_of_the_current_version_are_the_pool_and_no_other_is_forked() -> None:
    world = adopted("w1", "w2", min_workers=2)
    hear(world, "w1")
    hear(world, "w2")
    assert world.agent().adoption is None and world.agent().current is world.supervisor.pool.templates[T]
    world.wait(100.0)
    assert all_of(world.effects, ef.ForkWorker) == [] and all_of(world.effects, ef.StartTemplate) == []
    assert world.ready() == ["w1", "w2"] and {world.run(), world.run()} <= {"w1", "w2"}


def test_what_is_missing_of_the_pool_is_forked_at_once() -> None:
    world = adopted("w1", min_workers=3)
    assert len(all_of(world.effects, ef.ForkWorker)) == 2


def test_workers_that_have_no_place_in_the_pool_stay_for_their_sessions() -> None:
    world = adopted("w1", "w2", "w3", max_workers=1)
    hear(world, "w1")
    hear(world, "w2", ev.Seen("s", 1, 0.0))
    hear(world, "w3")
    assert [world.state_of(id) for id in ("w1", "w2", "w3")] == ["ready", "ready", "stopping"]
    assert world.run("new") == "w1" and world.run("s") == "w2"


def test_a_worker_that_is_told_of_twice_is_one() -> None:
    world = adopted("w1", "w1", min_workers=1, max_workers=2)
    hear(world, "w1")
    assert world.ready() == ["w1"] and world.supervisor.pool.templates[T].workers == 1
    assert [slot.worker.id for slot in world.agent().slots if slot.worker] == ["w1"]


def test_an_agent_without_orphans_adopts_nobody() -> None:
    world = CoreWorld()
    world.tell(ev.AgentLoaded("a", 1, Settings()))
    assert world.agent().adoption is None


# Homes and turns

def test_homes_and_turns_are_what_workers_say() -> None:
    world = CoreWorld()
    load(world, sessions=(
        ev.Seen("moved", 3, 5.0, "w2"), ev.Seen("known", 4, 5.0, "w1"), ev.Seen("gone", 2, 5.0, "w1")))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", ev.Seen("moved", 3, 1.0), ev.Seen("known", 6, 1.0), ev.Seen("fresh", 1, 0.5, saved=True))
    hear(world, "w2")
    expected = {"moved": ("w1", "warm", 4), "known": ("w1", "warm", 7), "fresh": ("w1", "warm", 2)}
    for session, (worker, context, turn) in expected.items():
        run = world.request(session)
        dispatch = world.dispatches(run)[-1]
        assert (dispatch.worker, dispatch.context, dispatch.turn) == (worker, context, turn)
        world.end(run)
    assert world.agent().workers["w1"].saved == 1
    assert world.context_of(world.request("gone")) == "lost"


def test_turns_of_the_disk_stand_where_they_are_more() -> None:
    """A spilled run is a turn that the home does not know of."""
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 9, 5.0, "w1"),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    hear(world, "w1", ev.Seen("s", 6, 5.0))
    assert world.dispatches(world.request("s"))[-1].turn == 10


@pytest.mark.parametrize(("on_disk", "over"), [(5, False), (4, False), (5, True), (4, True)])
def test_a_run_whose_end_follows_is_one_turn_and_so_is_one_that_goes_on(on_disk: int, over: bool) -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", on_disk, 5.0, "w1"),), runs=(unfinished("r", "w1", "s", "warm"),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    told = 5 if over else 4
    if on_disk > told:
        told = on_disk
    hear(world, "w1", ev.Seen("s", told, 5.0), runs=(unfinished("r", "w1", "s", "warm", over=over),))
    world.end("r")
    assert world.answer("r").turn == (told if over else told + 1)


def test_two_workers_cannot_both_be_a_home() -> None:
    world = adopted("w1", "w2", affinity="strict")
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    hear(world, "w2", ev.Seen("s", 1, 0.0))
    assert world.run("s") == "w1" and world.agent().workers["w2"].sessions == 0


def test_a_session_of_a_worker_that_died_before_it_was_heard_is_lost() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"),))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2")
    waiting = world.request("s")
    assert world.waits(waiting)
    world.die("w1")
    assert world.agent().adoption is None
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w2", "lost")


def test_a_session_of_a_worker_that_died_after_it_was_heard_is_lost() -> None:
    world = adopted("w1", "w2")
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    waiting = world.request("s")
    world.die("w1")
    assert world.waits(waiting)
    hear(world, "w2")
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w2", "lost")


# While somebody has not been heard

def test_no_run_of_a_session_starts_while_its_home_may_be_silent() -> None:
    """Not even of one that nobody has named yet, nor on a worker that was forked meanwhile."""
    world = adopted("w1", "w2", min_workers=3)
    world.tell(ev.WorkerReady(only(world.effects, ef.ForkWorker).worker))
    hear(world, "w1", ev.Seen("known", 1, 0.0))
    runs = [world.request("known"), world.request("unheard-of"), world.request("fresh")]
    assert all(world.waits(run) for run in runs)
    hear(world, "w2", ev.Seen("unheard-of", 2, 0.0))
    assert [world.context_of(run) for run in runs] == ["warm", "warm", "new"]
    assert [world.worker_of(run) for run in runs[:2]] == ["w1", "w2"]


def test_a_run_without_a_session_needs_nobody_to_be_heard() -> None:
    world = adopted("w1", "w2", "w3", max_workers=2)
    waiting = world.request()
    assert world.waits(waiting)
    hear(world, "w3")
    assert world.waits(waiting), "there is no place for it in the pool"
    hear(world, "w1")
    assert world.worker_of(waiting) == "w1" and world.agent().adoption is not None


def test_runs_that_wait_for_the_end_of_it_do_not_fork_workers() -> None:
    world = adopted("w1", max_workers=10)
    for number in range(10):
        world.request(f"s{number}")
    assert all_of(world.effects, ef.ForkWorker) == []
    hear(world, "w1", *(ev.Seen(f"s{number}", 1, 0.0) for number in range(10)))
    assert all_of(world.effects, ef.ForkWorker) == []


def test_after_so_long_it_is_over_whoever_is_silent() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"), ev.Seen("other", 1, 5.0, "w2")))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2", ev.Seen("other", 1, 0.0))
    strict, soft, other = world.request("s", affinity="strict"), world.request("s"), world.request("other")
    world.wait(ADOPT_S - 0.001)
    assert all(world.waits(run) for run in (strict, soft, other))
    world.wait(0.001)
    assert world.worker_of(other) == "w2" and world.state_of("w1") == "killing"
    assert world.waits(strict), "its home is not proved dead"
    world.end(other)
    world.die("w1")
    assert (world.worker_of(strict), world.context_of(strict)) == ("w2", "lost")


def test_a_silent_template_is_killed_and_waited_for_as_nobody_knows_its_workers() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"),))
    waiting = world.request("s")
    world.wait(ADOPT_S)
    assert only(world.effects, ef.KillTemplate).template == T and world.waits(waiting)
    world.wait(ADOPT_S)
    assert len(all_of(world.effects, ef.KillTemplate)) == 2 and world.waits(waiting)
    world.tell(ev.TemplateExited(T, "signal 9"))
    assert len(world.agent().record) == 0
    world.start_all()
    assert world.context_of(waiting) == "lost"


def test_a_template_that_is_gone_is_replaced_at_once() -> None:
    world = CoreWorld()
    load(world)
    world.tell(ev.TemplateExited(T, "cause unknown"))
    assert only(world.effects, ef.StartTemplate).version == 1


def test_the_queue_is_as_long_as_ever_and_runs_in_it_expire() -> None:
    world = adopted("w1", queue_size=3, session_queue_size=2, queue_timeout_s=2.0)
    first = [world.request("s"), world.request("s")]
    assert world.outcome(world.request("s")) == ("rejected", "session-queue-full")
    other = world.request()
    assert world.outcome(world.request("t")) == ("rejected", "overloaded")
    world.wait(2.0)
    assert {world.outcome(run) for run in (*first, other)} == {("expired", "timed-out")}


def test_a_run_that_must_be_warm_waits_until_it_is_known_whether_it_is() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"), ev.Seen("gone", 1, 5.0, "w2")))
    warm, cold = world.request("s", warm=True), world.request("gone", warm=True)
    assert world.waits(warm) and world.waits(cold)
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    assert world.context_of(warm) == "warm" and world.outcome(cold) == ("rejected", "context-not-warm")


def test_patience_with_a_home_begins_when_it_is_known() -> None:
    world = adopted("w1", "w2", patience_s=1.0, max_workers=2)
    hear(world, "w1", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w1"),))
    waiting = world.request("s")
    world.wait(2.0)
    hear(world, "w2")
    world.wait(0.999)
    assert world.waits(waiting)
    world.wait(0.001)
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w2", "spilled")


@pytest.mark.parametrize("order", [("w1", "w2"), ("w2", "w1")])
def test_sessions_that_share_a_home_lose_no_patience_while_it_is_not_known(order: tuple[str, str]) -> None:
    world = adopted("w1", "w2", patience_s=0.1, max_workers=2)
    runs = [world.request("s"), world.request("t")]
    for worker in order:
        world.wait(2.0)
        hear(world, worker, *(ev.Seen(session, 1, 0.0) for session in ("s", "t") if worker == "w1"))
    world.wait(0.099)
    world.end(runs[0])
    assert [world.context_of(run) for run in runs] == ["warm", "warm"]


def test_sessions_whose_home_is_heard_late_have_patience_from_then() -> None:
    world = CoreWorld()
    seen = (ev.Seen("s", 1, 5.0, "w1"), ev.Seen("t", 1, 5.0, "w1"))
    load(world, sessions=seen, runs=(unfinished("r", "w1"),), max_workers=2)
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2")
    busy, runs = world.request(), [world.request("s"), world.request("t")]
    world.wait(ADOPT_S + 1.0)
    assert world.worker_of(busy) == "w2" and all(world.waits(run) for run in runs)
    hear(world, "w1", *seen)
    world.end(busy)
    world.wait(0.099)
    world.end(runs[0])
    assert [world.context_of(run) for run in runs] == ["warm", "warm"]


@pytest.mark.parametrize("log_knows", [True, False])
def test_an_exclusive_run_waits_for_the_one_that_was_found(log_knows: bool) -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w1", "s", "warm"),) if log_knows else ())
    waiting = world.request("s", overlap="queue")
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w1", "s", "warm"),))
    hear(world, "w2")
    assert world.waits(waiting)
    world.end("r")
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w1", "warm")


# Sessions, when it is over

def test_nothing_is_ended_before_all_were_heard_and_then_in_order_of_use() -> None:
    world = CoreWorld()
    load(world, session_max=2, session_ttl_s=100.0, sessions=(
        ev.Seen("expired", 1, 99.0, "w2"), ev.Seen("old", 1, 50.0, "w2"), ev.Seen("new", 1, 20.0, "w1")))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", ev.Seen("oldest", 1, 70.0), ev.Seen("new", 1, 20.0))
    world.wait(2.0)
    assert all_of(world.effects, ef.EndSession) == []
    hear(world, "w2", ev.Seen("old", 1, 52.0), ev.Seen("expired", 1, 101.0))
    ended = [(effect.session, effect.worker) for effect in all_of(world.effects, ef.EndSession)]
    assert ended == [("expired", "w2"), ("oldest", "w1")]
    world.wait(48.0)
    assert all_of(world.effects, ef.EndSession)[2] == ef.EndSession("w2", "old", "ttl", "a")


def test_a_session_that_only_its_home_knew_ends_in_time() -> None:
    world = adopted("w1", session_ttl_s=100.0)
    world.wait(0.1)
    hear(world, "w1", ev.Seen("s", 1, 98.0))
    world.wait(2.0)
    assert only(world.effects, ef.EndSession) == ef.EndSession("w1", "s", "ttl", "a")


def test_a_session_is_not_ended_while_its_home_may_not_hear_of_it() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    world.tell(ev.SessionEndRequested("a", "s"))
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    assert all_of(world.effects, ef.EndSession) == [] and world.supervisor.ignored == 1
    world.tell(ev.SessionEndRequested("a", "s"))
    assert only(world.effects, ef.EndSession) == ef.EndSession("w1", "s", "ended", "a")
