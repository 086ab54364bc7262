"""The one timer: it may wake its owner early, never late, and what is stale does not heap up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.core.deadlines import FEW, Deadlines
from tests.unit.core_world import CoreWorld

OWNERS = st.sampled_from("abcdef")
STEPS = st.lists(st.one_of(
    st.tuples(st.just("arm"), OWNERS, st.floats(0, 100)),
    st.tuples(st.just("forget"), OWNERS, st.just(0.0)),
    st.tuples(st.just("due"), st.just(""), st.floats(0, 100)),
), max_size=200)  # fmt: skip


def test_nothing_is_due_when_nothing_was_armed() -> None:
    deadlines = Deadlines()
    assert deadlines.next() is None
    assert deadlines.due(1e9) == []


def test_an_owner_is_due_at_its_time_and_once() -> None:
    deadlines = Deadlines()
    deadlines.arm("a", 10.0)
    assert deadlines.next() == 10.0
    assert deadlines.due(9.999) == []
    assert deadlines.due(10.0) == ["a"]
    assert deadlines.due(10.0) == []
    assert deadlines.next() is None


def test_wanting_it_later_leaves_the_earlier_wake_up() -> None:
    deadlines = Deadlines()
    deadlines.arm("a", 10.0)
    deadlines.arm("a", 20.0)
    assert len(deadlines) == 1
    assert deadlines.due(15.0) == ["a"]
    assert deadlines.next() is None


def test_wanting_it_earlier_moves_it() -> None:
    deadlines = Deadlines()
    deadlines.arm("a", 20.0)
    deadlines.arm("a", 10.0)
    assert deadlines.next() == 10.0
    assert deadlines.due(30.0) == ["a"]


def test_who_is_forgotten_is_not_woken() -> None:
    deadlines = Deadlines()
    deadlines.arm("a", 10.0)
    deadlines.arm("b", 20.0)
    deadlines.forget("a")
    deadlines.forget("never armed")
    assert deadlines.next() == 20.0
    assert deadlines.due(30.0) == ["b"]


def test_who_was_forgotten_may_come_back() -> None:
    deadlines = Deadlines()
    deadlines.arm("a", 10.0)
    deadlines.forget("a")
    deadlines.arm("a", 15.0)
    assert deadlines.due(12.0) == []
    assert deadlines.due(15.0) == ["a"]


def test_owners_are_woken_in_the_order_of_their_times() -> None:
    deadlines = Deadlines()
    for owner, at in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("a2", 1.0)):
        deadlines.arm(owner, at)
    assert deadlines.due(10.0) == ["a", "a2", "b", "c"]


def test_stale_entries_are_bounded() -> None:
    deadlines = Deadlines()
    deadlines.arm("last", 1e6)
    for number in range(10_000):
        deadlines.arm("a", 1e6 - number)
        assert len(deadlines) <= 2 * 2 + FEW + 1
    for number in range(10_000):
        deadlines.arm("b", 5e5 + number)
        deadlines.forget("b")
        assert len(deadlines) <= 2 * 3 + FEW + 1
    assert deadlines.due(1e6) == ["a", "last"]


@given(STEPS)
def test_early_perhaps_late_never(steps: list[tuple[str, str, float]]) -> None:
    deadlines, wanted = Deadlines(), dict[str, float]()
    for what, owner, at in steps:
        if what == "arm":
            deadlines.arm(owner, at)
            wanted[owner] = min(at, wanted.get(owner, at))
        elif what == "forget":
            deadlines.forget(owner)
            wanted.pop(owner, None)
        else:
            expected = {owner for owner, time in wanted.items() if time <= at}
            due = deadlines.due(at)
            assert len(due) == len(expected) and set(due) == expected
            wanted = {owner: time for owner, time in wanted.items() if owner not in expected}
        assert deadlines.next() == min(wanted.values(), default=None)


def test_a_busy_worker_does_not_fill_the_timer() -> None:
    world = CoreWorld()
    world.deploy(timeout_s=300.0)
    for number in range(2000):
        world.end(world.request(f"s{number % 7}"))
        world.now += 0.001
    assert len(world.supervisor.deadlines) <= FEW + 10


def test_a_run_that_takes_too_long_is_stopped_not_before() -> None:
    world = CoreWorld()
    world.deploy(timeout_s=300.0)
    short = world.run()
    world.wait(10.0)
    run = world.request(timeout_s=20.0)
    assert world.worker_of(run) == short
    world.wait(19.999)
    assert run in world.supervisor.runs and not world.supervisor.runs[run].stopping
    world.wait(0.001)
    assert world.supervisor.runs[run].stopping == "timed-out"


@pytest.mark.parametrize("session", [None, "s"])
def test_nothing_is_left_to_wake_for_when_nothing_waits(session: str | None) -> None:
    world = CoreWorld()
    world.deploy(session_ttl_s=50.0)
    world.run(session)
    world.wait(10_000.0)
    assert world.supervisor.next_deadline() is None
