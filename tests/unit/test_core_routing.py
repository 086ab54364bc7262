"""Routing: who executes which run, who waits for whom and how long, and in what order."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.pool import Policy
from tests.unit.core_world import CoreWorld, all_of


def busy_pair() -> tuple[CoreWorld, str, str, str, str]:
    """Two workers and no room for more, both busy; the first is home of session s. Returns both and their runs."""
    world = CoreWorld()
    world.deploy(workers=2, max_workers=2)
    home = world.run("s")
    at_home = world.occupy(home)
    [other] = [worker for worker in world.ready() if worker != home]
    return world, home, other, at_home, world.occupy(other)


# Placement


def test_a_new_session_goes_where_the_fewest_live() -> None:
    world = CoreWorld()
    world.deploy(workers=3)
    homes = [world.run(f"s{number}") for number in range(9)]
    assert sorted(homes.count(worker) for worker in world.ready()) == [3, 3, 3]


def test_of_equals_the_one_that_has_been_idle_longest_is_taken() -> None:
    world = CoreWorld()
    workers = world.deploy(workers=3)
    assert [world.run() for _ in range(6)] == workers * 2


def test_a_worker_takes_as_many_runs_as_its_concurrency() -> None:
    world = CoreWorld()
    world.deploy(concurrency=3, max_workers=1)
    runs = [world.request() for _ in range(4)]
    assert [world.waits(run) for run in runs] == [False, False, False, True]
    world.end(runs[1])
    assert not world.waits(runs[3])


def test_two_first_runs_of_a_session_meet_one_home() -> None:
    world = CoreWorld()
    [worker] = world.deploy(max_workers=1)
    world.occupy(worker)
    first, second = world.request("s"), world.request("s")
    world.end(next(iter(world.supervisor.pool.workers[worker].runs)))
    assert (world.worker_of(first), world.context_of(first)) == (worker, "new")
    world.end(first)
    assert (world.worker_of(second), world.context_of(second)) == (worker, "warm")


def test_the_second_first_run_waits_for_the_home_though_others_are_idle() -> None:
    world = CoreWorld()
    world.deploy(workers=3)
    first, second = world.request("s"), world.request("s")
    assert world.waits(second)
    world.end(first)
    assert world.worker_of(second) == world.worker_of(first)


# Patience


def test_soft_waits_for_its_home_as_long_as_its_patience_then_spills() -> None:
    world = CoreWorld()
    world.deploy(workers=2, patience_s=0.25)
    home = world.run("s")
    world.occupy(home)
    run = world.request("s")
    world.wait(0.249)
    assert world.waits(run)
    world.wait(0.001)
    assert world.context_of(run) == "spilled"
    assert world.worker_of(run) != home


def test_a_home_that_frees_within_the_patience_gets_the_run() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    before = world.occupy(home)
    run = world.request("s")
    world.wait(0.09)
    world.end(before)
    assert (world.worker_of(run), world.context_of(run)) == (home, "warm")


@pytest.mark.parametrize("home_first", [True, False])
def test_after_its_patience_a_run_takes_whichever_frees_first(home_first: bool) -> None:
    world, home, other, at_home, at_other = busy_pair()
    run = world.request("s")
    world.wait(0.2)
    assert world.waits(run)
    world.end(at_home if home_first else at_other)
    assert (world.worker_of(run), world.context_of(run)) == ((home, "warm") if home_first else (other, "spilled"))


def test_within_its_patience_a_run_leaves_a_freed_stranger_alone() -> None:
    world, _, other, _, at_other = busy_pair()
    run = world.request("s")
    world.end(at_other)
    assert world.waits(run)
    world.wait(0.1)
    assert world.worker_of(run) == other


def test_strict_waits_for_its_home_whatever_is_idle() -> None:
    world = CoreWorld()
    world.deploy(workers=3)
    home = world.run("s")
    before = world.occupy(home)
    run = world.request("s", affinity="strict")
    world.wait(200.0)
    assert world.waits(run) and len(world.agent().idle) == 2
    world.end(before)
    assert (world.worker_of(run), world.context_of(run)) == (home, "warm")


def test_strict_goes_elsewhere_only_when_its_home_is_dead() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.occupy(home)
    run = world.request("s", affinity="strict")
    world.tell(ev.WorkerMisbehaved(home, "nonsense"))
    assert world.state_of(home) == "killing" and world.waits(run)
    world.die(home)
    assert world.context_of(run) == "lost" and world.worker_of(run) != home


def test_patience_counts_from_the_request_though_an_earlier_run_went_first() -> None:
    world = CoreWorld()
    world.deploy(workers=2, patience_s=1.0)
    home = world.run("s")
    blocking = world.occupy(home)
    first = world.request("s")
    world.wait(0.1)
    second = world.request("s")
    world.wait(0.4)
    world.end(blocking)
    assert world.worker_of(first) == home
    world.wait(0.599)
    assert world.waits(second)
    world.wait(0.001)
    assert world.context_of(second) == "spilled"


# Taking turns


def test_a_session_that_floods_starves_nobody() -> None:
    world = CoreWorld()
    [worker] = world.deploy(max_workers=1)
    current = world.occupy(worker)
    flood = [world.request("flood") for _ in range(20)]
    others = [world.request("other"), world.request(), world.request("another")]
    order = []
    while True:
        world.end(current)
        runs = world.supervisor.pool.workers[worker].runs
        if not runs:
            break
        [current] = runs
        order.append(current)
    assert [run for run in order if run in flood] == flood
    assert max(order.index(run) for run in others) <= 2 * len(others)


def test_runs_without_a_session_are_served_in_order() -> None:
    world = CoreWorld()
    [worker] = world.deploy(max_workers=1)
    first = world.occupy(worker)
    waiting = [world.request() for _ in range(5)]
    order, current = [], first
    for _ in waiting:
        world.end(current)
        [current] = world.supervisor.pool.workers[worker].runs
        order.append(current)
    assert order == waiting


def test_a_waiting_run_delays_no_other_session() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.occupy(home)
    assert world.waits(world.request("s", affinity="strict"))
    assert world.run("t") != home


# Overlap


def test_queued_runs_of_a_session_follow_each_other() -> None:
    world = CoreWorld()
    world.deploy(workers=3, overlap="queue")
    runs = [world.request("s") for _ in range(4)]
    world.wait(50.0)
    for run in runs:
        assert [world.waits(other) for other in runs[runs.index(run):]] == [False] + [True] * (
            len(runs) - runs.index(run) - 1)
        world.end(run)
    assert [world.context_of(run) for run in runs] == ["new", "warm", "warm", "warm"]


def test_reject_refuses_while_another_runs_or_waits() -> None:
    world = CoreWorld()
    world.deploy(workers=2, overlap="reject")
    first = world.request("s")
    assert world.outcome(world.request("s")) == ("rejected", "session-busy")
    world.end(first)
    assert world.run("s")


def test_interrupt_stops_what_runs_and_what_waits() -> None:
    world = CoreWorld()
    world.deploy(workers=2, affinity="strict")
    running, waiting = world.request("s"), world.request("s")
    other = world.request("t")
    last = world.request("s", overlap="interrupt")
    assert world.outcome(waiting) == ("cancelled", "cancelled")
    assert [c.run for c in all_of(world.effects, ef.CancelRun)] == [running]
    assert world.waits(last) and not world.waits(other)
    world.end(running, "cancelled")
    assert (world.worker_of(last), world.context_of(last)) == (world.worker_of(running), "warm")


# Limits


def test_a_full_queue_refuses_at_once() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1, queue_size=2)
    world.request()
    waiting = [world.request(), world.request("s")]
    refused = world.request("t")
    assert world.outcome(refused) == ("rejected", "overloaded")
    assert all(world.waits(run) for run in waiting)
    assert world.agent().counts["rejected"] == 1


def test_a_full_session_queue_refuses_that_session_only() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1, session_queue_size=2)
    world.request()
    for _ in range(2):
        assert world.waits(world.request("s"))
    assert world.outcome(world.request("s")) == ("rejected", "session-queue-full")
    assert world.waits(world.request("t"))


def test_inputs_that_wait_are_bounded_and_no_agent_leaves_nothing_for_others() -> None:
    world = CoreWorld(Policy(waiting_bytes=100))
    for agent in ("a", "b"):
        world.deploy(agent, max_workers=1)
        world.request(agent=agent, input_bytes=1000)
    waiting = [world.request(input_bytes=10) for _ in range(5)]
    assert all(world.waits(run) for run in waiting)
    refused = world.request(input_bytes=1)
    assert world.outcome(refused) == ("rejected", "overloaded")
    assert "put large data into the workspace" in world.answer(refused).message
    assert world.waits(world.request())
    assert world.waits(world.request(agent="b", input_bytes=25))
    assert world.outcome(world.request(agent="b", input_bytes=1)) == ("rejected", "overloaded")
    world.tell(ev.CancelRequested(waiting[0]))
    assert world.waits(world.request(agent="b", input_bytes=5))


def test_an_interrupt_may_have_the_room_of_what_it_takes_the_place_of() -> None:
    world = CoreWorld(Policy(waiting_bytes=100))
    world.deploy(max_workers=1)
    running = world.request("s")
    replaced = world.request("s", input_bytes=50)
    refused = world.request("s", overlap="interrupt", input_bytes=101)
    assert world.outcome(refused) == ("rejected", "overloaded")
    assert world.waits(replaced) and not all_of(world.effects, ef.CancelRun)
    interrupting = world.request("s", overlap="interrupt", input_bytes=100)
    assert world.outcome(replaced) == ("cancelled", "cancelled")
    world.end(running, "cancelled")
    assert world.worker_of(interrupting) == world.worker_of(running)


def test_what_an_earlier_daemon_accepted_is_refused_by_no_limit() -> None:
    world = CoreWorld()
    world.deploy(max_workers=1, queue_size=2, session_queue_size=2)
    world.request()
    overlaps = ("allow", "queue", "reject", "allow")
    for number, overlap in enumerate(overlaps):
        world.tell(ev.RunRequested(f"again-{number}", "a", "s", None, overlap, readmitted=True))
        assert world.waits(f"again-{number}")
    assert world.outcome(world.request("t")) == ("rejected", "overloaded")


# require: warm


def test_require_warm_takes_new_and_warm() -> None:
    world = CoreWorld()
    world.deploy()
    for context in ("new", "warm"):
        run = world.request("s", warm=True)
        assert world.context_of(run) == context
        world.end(run)


def test_require_warm_waits_rather_than_spills() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    before = world.occupy(home)
    run = world.request("s", warm=True)
    world.wait(100.0)
    assert world.waits(run)
    world.end(before)
    assert world.context_of(run) == "warm"


def test_require_warm_is_refused_when_the_memory_is_gone() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    world.die(world.run("s"))
    assert world.outcome(world.request("s", warm=True)) == ("rejected", "context-not-warm")


def test_require_warm_is_refused_when_the_home_dies_meanwhile() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.occupy(home)
    cold, content = world.request("s", warm=True), world.request("s")
    world.die(home)
    assert world.outcome(cold) == ("rejected", "context-not-warm")
    assert world.context_of(content) == "lost"


# What the answer says of the placement


def test_the_answer_says_why() -> None:
    world = CoreWorld()
    world.deploy(workers=2)
    home = world.run("s")
    world.occupy(home)
    run = world.request("s", overlap="queue")
    world.wait(0.1)
    world.end(run)
    why = world.answer(run).why
    assert (why.affinity, why.overlap, why.idle, why.home) == ("soft", "queue", 1, home)
    assert why.waited_s == pytest.approx(0.1)
