"""The lifecycle tables: every move they have works, and every other one is an error that tells its story."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import TRANSITIONS as AGENT
from orpheusd.core.lifecycle import IllegalMove, move
from orpheusd.core.run import TRANSITIONS as RUN
from orpheusd.core.run import RunState
from orpheusd.core.worker import TRANSITIONS as PROCESS
from orpheusd.core.worker import ProcessState
from tests.unit.core_world import CoreWorld, all_of

TABLES: list[Mapping[Any, tuple[Any, ...]]] = [AGENT, RUN, PROCESS]
MOVES = [(table, state, to) for table in TABLES for state in table for to in table]
LEGAL = [(table, state, to) for table, state, to in MOVES if to in table[state]]
ILLEGAL = [(table, state, to) for table, state, to in MOVES if to not in table[state]]


class Subject:
    id = "it"

    def __init__(self, state: Enum) -> None:
        self.state: Any = state


@pytest.mark.parametrize(("table", "state", "to"), LEGAL)
def test_what_the_table_has_is_done(table: Mapping[Any, tuple[Any, ...]], state: Enum, to: Enum) -> None:
    subject = Subject(state)
    move(subject, table, to)
    assert subject.state is to


@pytest.mark.parametrize(("table", "state", "to"), ILLEGAL)
def test_what_the_table_lacks_is_an_error(table: Mapping[Any, tuple[Any, ...]], state: Enum, to: Enum) -> None:
    subject = Subject(state)
    with pytest.raises(IllegalMove, match=f"it is {state.name} and cannot become {to.name}"):
        move(subject, table, to)
    assert subject.state is state


def test_every_state_has_its_row() -> None:
    for table in TABLES:
        assert set(table) == set(type(next(iter(table))).__members__.values())


def test_processes_only_go_forward() -> None:
    order = list(ProcessState)
    assert all(order.index(to) > order.index(state) for state, following in PROCESS.items() for to in following)


def test_a_run_has_seven_ends() -> None:
    terminal = {state.value for state, following in RUN.items() if not following}
    assert terminal == {"completed", "failed", "timed-out", "cancelled", "crashed", "expired", "rejected"}


def test_an_error_of_our_own_tells_what_happened_to_its_subject() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    run = world.request("s")
    world.supervisor.runs[run].state = RunState.EXPIRED  # the mistake
    with pytest.raises(AssertionError) as raised:
        world.supervisor.handle(ev.CancelRequested("another"), world.now)
        world.supervisor.handle(ev.WorkerExited(worker, "signal 9"), world.now)
    story = str(raised.value)
    assert f"{run} is EXPIRED and cannot become CRASHED" in story
    assert f"RunRequested(run='{run}'" in story
    assert "CancelRequested" not in story


def test_a_late_or_doubled_fact_is_counted_and_changes_nothing() -> None:
    # fault 28
    world = CoreWorld()
    first, second = world.deploy(workers=2)
    over, going_on = world.request("s"), world.request("t")
    world.end(over)
    world.die(world.worker_of(going_on) or "")
    doubled: list[ev.Event] = [
        ev.RunEnded(first, over, "completed", ""),
        ev.RunEnded(second, going_on, "completed", ""),
        ev.RunEnded("w-never", "r-never", "completed", ""),
        ev.CancelRequested(over),
        ev.WorkerExited(second, "exit 0"),
        ev.WorkerReady(second),
        ev.WorkerFailed(second, "late"),
        ev.WorkerMisbehaved(second, "late"),
        ev.TemplateReady("t-never"),
        ev.TemplateFailed("t-never", "late"),
        ev.TemplateExited("t-never", "exit 0"),
        ev.SessionEndRequested("a", "unknown"),
        ev.SessionEndRequested("nobody", "s"),
        ev.AgentLoaded("a", 7, world.agent().settings),
        ev.RemovalRequested("nobody", "q"),
    ]
    for number, event in enumerate(doubled, 1):
        assert world.tell(event) == [], event
        assert world.supervisor.ignored == number, event


def test_a_run_id_is_taken_once() -> None:
    world = CoreWorld()
    world.deploy()
    run = world.request()
    assert world.tell(ev.RunRequested(run, "a")) == []
    assert world.supervisor.ignored == 1
    assert len(world.dispatches(run)) == 1


def test_the_end_of_a_run_is_not_believed_of_another_worker() -> None:
    world = CoreWorld()
    first, second = world.deploy(workers=2)
    run = world.request()
    other = second if world.worker_of(run) == first else first
    assert world.tell(ev.RunEnded(other, run, "completed", "")) == []
    assert run in world.supervisor.runs
    world.end(run)
    assert world.outcome(run) == ("completed", "")


def test_ready_said_twice_is_ready_once() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    assert world.tell(ev.WorkerReady(worker)) == []
    assert world.tell(ev.TemplateReady(next(iter(world.agent().templates)))) == []
    assert all_of(world.tell(ev.TemplateFailed(next(iter(world.agent().templates)), "late")), ef.KillTemplate) == []
    assert world.ready() == [worker]


def test_an_unknown_agent_has_no_runs() -> None:
    world = CoreWorld()
    run = world.request(agent="nobody")
    assert world.outcome(run) == ("rejected", "not-found")
    assert "orpheusctl list" in world.answer(run).message
    assert world.supervisor.agents == {}


def test_an_agent_on_its_first_trial_is_not_found_yet() -> None:
    world = CoreWorld()
    world.stage(1)
    assert world.outcome(world.request()) == ("rejected", "not-found")
