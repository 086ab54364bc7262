"""Runs that an earlier daemon left, and those who have them and do not dial."""

from collections.abc import Iterator

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.adoption import ADOPT_S, NOT_HEARD
from orpheusd.core.agent import AgentState
from orpheusd.core.pool import Policy
from tests.unit.adoption_world import T, adopted, hear, home, load, unfinished
from tests.unit.core_world import CoreWorld, all_of, only

GRACE_S = Policy().grace_s


# Runs

def test_a_run_goes_on_and_its_caller_may_cancel_it() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r1", "w1", left_s=50.0), unfinished("r2", "w2")))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", runs=(unfinished("r1", "w1", left_s=7.0),))
    hear(world, "w2", runs=(unfinished("r2", "w2"),))
    world.end("r2")
    assert world.outcome("r2") == ("completed", "")
    world.wait(7.0)
    assert only(world.effects, ef.CancelRun) == ef.CancelRun("w1", "r1", "timed-out")


def test_a_run_that_is_over_ends_again_and_is_answered_once() -> None:
    world = adopted("w1")
    hear(world, "w1", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w1", "s", "new", over=True),))
    world.tell(ev.RunEnded("w1", "r", "completed", ""))
    world.tell(ev.RunEnded("w1", "r", "completed", ""))
    assert world.outcome("r") == ("completed", "") and world.answer("r").turn == 1
    assert world.run("s") == "w1"


class Looked(tuple[ev.Unfinished, ...]):
    """Runs that count how often all of them are looked at."""

    times = 0

    def __iter__(self) -> Iterator[ev.Unfinished]:
        Looked.times += 1
        return super().__iter__()


def test_what_a_worker_has_is_looked_through_as_often_however_much_it_is() -> None:
    def times(sessions: int) -> int:
        Looked.times = 0
        runs = Looked(unfinished(f"r{number}", "w1", "s0", "warm", over=True) for number in range(2))
        world = adopted("w1")
        hear(world, "w1", *(ev.Seen(f"s{number}", 3, 0.0) for number in range(sessions)), runs=runs)
        known = world.agent().sessions.get("s0")
        assert known is not None and known.turns == 1, "two of its three turns are still to be told"
        return Looked.times

    assert times(1000) == times(1)


@pytest.mark.parametrize("told_by", ["nobody", "disk", "worker"])
def test_a_session_that_was_ended_after_a_run_is_not_known_for_that(told_by: str) -> None:
    world = CoreWorld()
    seen = ev.Seen("s", 1, 0.0)
    load(world, sessions=(seen,) if told_by == "disk" else ())
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    hear(world, "w1", *((seen,) if told_by == "worker" else ()), runs=(unfinished("r", "w1", "s", "warm", over=True),))
    world.end("r")
    assert world.outcome("r") == ("completed", "")
    assert (world.agent().sessions.get("s") is None) == (told_by == "nobody")


def test_a_run_that_the_log_does_not_have_is_found() -> None:
    world = adopted("w1")
    hear(world, "w1", ev.Seen("s", 0, 0.0), runs=(unfinished("r", "w1", "s", "new"),))
    assert world.worker_of("r") == "w1" and world.agent().started == 1
    world.end("r")
    assert (world.answer("r").context, world.answer("r").turn) == ("new", 1)


def test_runs_that_nobody_has_spoken_for_yet_are_going_on() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r1", "w1"), unfinished("r2", "w2"), unfinished("r3", None)))
    assert world.agent().going_on == 3
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", runs=(unfinished("r1", "w1"),))
    assert world.agent().going_on == 3
    hear(world, "w2")
    assert world.agent().going_on == 1, "two are given up, as nobody has them"
    world.end("r1")
    assert world.agent().going_on == 0


@pytest.mark.parametrize(("worker", "context", "message"), [
    ("w1", "warm", "which does not have it"), ("w9", "warm", "that worker is gone"), (None, None, "was not started")])
def test_a_run_that_nobody_has_has_crashed(worker: str | None, context: str | None, message: str) -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 3, 5.0, "w1"),), runs=(unfinished("r", worker, "s", context),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    hear(world, "w1", ev.Seen("s", 3, 0.0))
    assert world.outcome("r") == ("crashed", "worker-crashed") and message in world.answer("r").message
    assert world.answer("r").turn == (4 if worker else 0), "a run that waited has no turn"
    assert world.supervisor.runs == {}


def test_whether_a_run_was_started_is_not_said_when_somebody_was_silent() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", None),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    world.wait(ADOPT_S)
    assert "no worker has told of it" in world.answer("r").message


def test_a_session_whose_first_run_went_with_its_worker_is_not_new() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w9", "s", "new"),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    hear(world, "w1")
    assert world.context_of(world.request("s")) == "lost"


def test_no_run_starts_before_all_that_nobody_has_are_given_up() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("gone1", "w9", "s", "new"), unfinished("gone2", "w9", "s", "warm")))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    waiting = world.request("s", overlap="queue")
    hear(world, "w1")
    assert world.dispatches(waiting)[-1].turn == 3 and world.context_of(waiting) == "lost"


def test_a_run_that_another_worker_has_is_not_believed() -> None:
    world = adopted("w1", "w2")
    hear(world, "w1", runs=(unfinished("r", "w1"),))
    hear(world, "w2", runs=(unfinished("r", "w2"),))
    world.tell(ev.RunEnded("w2", "r", "failed", "handler-failed"))
    assert world.worker_of("r") == "w1"
    world.end("r")
    assert world.outcome("r") == ("completed", "")


# The silent

def test_a_silent_worker_with_a_run_keeps_it_until_its_time_is_up() -> None:
    world = CoreWorld()
    load(world, sessions=(ev.Seen("s", 1, 5.0, "w1"),),
         runs=(unfinished("r", "w1", "mine", "new", left_s=60.0), unfinished("q", "w1", "spilled", "spilled")))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2")
    world.wait(60.0 - 0.001)
    assert world.state_of("w1") == "starting" and (home(world, "s"), home(world, "mine")) == ("w1", "w1")
    assert home(world, "spilled") is None
    world.wait(0.001 + GRACE_S)
    assert world.state_of("w1") == "killing"
    world.die("w1")
    assert world.outcome("r") == ("timed-out", "timed-out") and home(world, "s") is None


def test_a_silent_worker_without_a_run_is_killed() -> None:
    world = adopted("w1")
    world.wait(ADOPT_S - 0.001)
    assert world.state_of("w1") == "starting"
    world.wait(0.001)
    assert world.state_of("w1") == "killing" and world.agent().workers["w1"].failure == NOT_HEARD


def test_a_worker_that_was_busy_and_is_heard_late_is_where_its_sessions_live() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w1"),), session_max=3, session_ttl_s=1000.0)
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2", ev.Seen("newest", 1, 10.0))
    world.wait(ADOPT_S)
    blocker = world.request()
    waiting = world.request("s", overlap="queue")
    assert world.worker_of(blocker) == "w2" and world.waits(waiting)
    hear(world, "w1", ev.Seen("s", 4, 500.0), ev.Seen("old", 4, 900.0), ev.Seen("older", 4, 950.0),
         runs=(unfinished("r", "w1"), unfinished("q", "w1", "s", "warm")))
    assert world.waits(waiting), "there is a run of its session"
    assert only(world.effects, ef.EndSession) == ef.EndSession("w1", "older", "evicted", "a")
    world.end("r")
    world.end("q")
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w1", "warm")
    world.end(waiting)
    world.wait(100.0)
    assert all_of(world.effects, ef.EndSession)[1:] == [ef.EndSession("w1", "old", "ttl", "a")]


def test_a_run_that_anybody_might_have_taken_waits_for_its_home_when_that_is_heard_late() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w1"),), max_workers=2)
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w2")
    world.wait(ADOPT_S)
    blocker, waiting = world.request(), world.request("s", affinity="strict")
    hear(world, "w1", ev.Seen("s", 4, 5.0), runs=(unfinished("r", "w1"),))
    world.end(blocker)
    assert world.waits(waiting)
    world.end("r")
    assert (world.worker_of(waiting), world.context_of(waiting)) == ("w1", "warm")


@pytest.mark.parametrize("heard", [True, False])
def test_a_cancel_that_a_silent_worker_could_not_hear_is_said_again(heard: bool) -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w1"),))
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    world.tell(ev.CancelRequested("r"))
    world.wait(1.0)
    if heard:
        hear(world, "w1", runs=(unfinished("r", "w1"),))
        world.wait(GRACE_S - 0.001)
        assert len(all_of(world.effects, ef.CancelRun)) == 2 and world.state_of("w1") == "ready"
    world.wait(GRACE_S)
    world.die("w1")
    assert world.outcome("r") == ("cancelled", "cancelled")


def test_the_death_of_a_worker_of_an_earlier_daemon_is_not_held_against_its_version() -> None:
    """Ten that do not dial are no reason to refuse an agent, nor to wait before others take their places."""
    world = adopted(*(f"w{number}" for number in range(10)), min_workers=10)
    world.wait(ADOPT_S)
    for number in range(10):
        world.wait(0.1)
        world.die(f"w{number}")
    assert world.agent().state is AgentState.ACTIVE and len(world.agent().record) == 0
    assert len(all_of(world.effects, ef.ForkWorker)) == 10
    world.start_all()
    world.die(world.ready()[0])
    assert len(world.agent().record) == 1


def test_a_worker_that_has_served_since_is_like_any_other() -> None:
    world = adopted("w1")
    hear(world, "w1")
    world.run()
    world.die("w1")
    assert len(world.agent().record) == 1


def test_letters_from_those_who_are_gone_change_nothing() -> None:
    world = adopted("w1")
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    world.die("w1")
    ignored = world.supervisor.ignored
    hear(world, "w1", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w1"),))
    world.tell(ev.TemplateAdopted("t-x", ("w7",)))
    assert world.supervisor.ignored == ignored + 2 and home(world, "s") is None
    world.tell(ev.TemplateAdopted(T, ("w8",)))
    assert "w8" not in world.agent().workers, "it was heard before"


def test_one_that_is_heard_twice_is_heard_once() -> None:
    world = adopted("w1")
    hear(world, "w1", runs=(unfinished("r", "w1"),))
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    assert world.worker_of("r") == "w1" and world.agent().sessions.get("s") is None


def test_one_that_dials_when_it_is_being_killed_is_not_believed() -> None:
    world = adopted("w1")
    world.wait(ADOPT_S)
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    assert world.state_of("w1") == "killing" and home(world, "s") is None
