"""Adoption with more than one version, and changes of an agent while it adopts."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.adoption import ADOPT_S
from tests.unit.adoption_world import T, adopted, hear, load, orphan, unfinished
from tests.unit.core_world import CoreWorld, all_of, only

# Other versions, and changes meanwhile

def test_a_template_of_an_older_version_is_waited_for_and_its_homes_stay() -> None:
    world = CoreWorld()
    load(world, orphan("t-one", 1), orphan("t-two", 2), version=2)
    assert all_of(world.effects, ef.StopTemplate) == []
    world.tell(ev.TemplateAdopted("t-two", ("w3",)))
    hear(world, "w3")
    free = world.request()
    assert world.worker_of(free) == "w3"
    world.tell(ev.TemplateAdopted("t-one", ("w1", "w2")))
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    waiting = world.request()
    hear(world, "w2")
    assert world.waits(waiting), "they are outdated"
    assert (world.state_of("w1"), world.state_of("w2")) == ("ready", "stopping")
    assert world.run("s") == "w1"
    world.wait(299.0)
    assert world.state_of("w1") == "ready"
    world.wait(1.0)
    assert world.state_of("w1") == "stopping"
    world.die("w1")
    world.die("w2")
    assert only(world.effects, ef.StopTemplate).template == "t-one"


def test_the_current_version_is_started_when_only_an_older_one_is_there() -> None:
    world = CoreWorld()
    load(world, orphan("t-one", 1), version=2)
    started = only(world.effects, ef.StartTemplate)
    world.tell(ev.TemplateReady(started.template))
    world.tell(ev.WorkerReady(only(world.effects, ef.ForkWorker).worker))
    assert started.version == 2 and all_of(world.effects, ef.StopTemplate) == []
    world.tell(ev.TemplateAdopted("t-one", ()))
    assert only(world.effects, ef.StopTemplate).template == "t-one" and world.run("s")


def test_a_template_that_an_interrupted_restart_left_goes_when_it_is_empty() -> None:
    world = CoreWorld()
    load(world, orphan("t-one", 1), orphan("t-two", 1))
    world.tell(ev.TemplateAdopted("t-one", ()))
    world.tell(ev.TemplateAdopted("t-two", ("w1",)))
    hear(world, "w1")
    assert only(world.effects, ef.StopTemplate).template == "t-one"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_deploy_meanwhile_waits_for_the_word_of_those_it_replaces(at_once: bool) -> None:
    world = adopted("w1", "w2", "w3")
    hear(world, "w1")
    template = world.stage(2, at_once=at_once)
    world.tell(ev.TemplateReady(template))
    first = all_of(world.effects, ef.ForkWorker)[-1].worker
    world.tell(ev.WorkerReady(first))
    assert only(world.effects, ef.VersionPromoted).version == 2
    assert [world.state_of(id) for id in ("w1", "w2", "w3")] == ["stopping", "starting", "starting"]
    assert world.run() == first
    hear(world, "w2", ev.Seen("s", 1, 0.0), runs=(unfinished("r", "w2"),))
    hear(world, "w3", ev.Seen("t", 1, 0.0))
    assert [world.state_of(id) for id in ("w2", "w3")] == (
        ["draining", "stopping"] if at_once else ["ready", "ready"])
    world.end("r")
    assert world.outcome("r") == ("completed", "")
    if not at_once:
        assert (world.run("s"), world.run("t")) == ("w2", "w3")


def test_the_silence_of_an_old_template_is_not_held_against_the_version_that_replaced_it() -> None:
    world = CoreWorld()
    load(world)
    world.tell(ev.TemplateReady(world.stage(2)))
    world.tell(ev.WorkerReady(only(world.effects, ef.ForkWorker).worker))
    assert only(world.effects, ef.VersionPromoted).version == 2
    world.wait(ADOPT_S)
    assert only(world.effects, ef.KillTemplate).template == T and len(world.agent().record) == 0


def test_outdated_workers_that_are_heard_late_are_no_more_than_the_pool_may_have() -> None:
    world = CoreWorld()
    load(world, orphan("t-one", 1, max_workers=1), orphan("t-two", 2, max_workers=1), version=2, max_workers=1,
         runs=(unfinished("r", "w2"),))
    world.tell(ev.TemplateAdopted("t-one", ("w1", "w2")))
    world.tell(ev.TemplateAdopted("t-two", ("w3",)))
    hear(world, "w1", ev.Seen("s", 1, 0.0))
    hear(world, "w3")
    world.wait(ADOPT_S)
    hear(world, "w2", ev.Seen("t", 1, 0.0), runs=(unfinished("r", "w2"),))
    assert (world.state_of("w1"), world.state_of("w2")) == ("stopping", "ready")


def test_the_longest_idle_go_first_by_what_they_say() -> None:
    world = CoreWorld()
    load(world, orphan("t-one", 1, max_workers=1), orphan("t-two", 2), version=2, max_workers=1)
    world.tell(ev.TemplateAdopted("t-two", ("w3",)))
    world.tell(ev.TemplateAdopted("t-one", ("w1", "w2")))
    hear(world, "w1", ev.Seen("s", 1, 10.0), ev.Seen("s2", 1, 90.0))
    hear(world, "w2", ev.Seen("t", 1, 20.0))
    hear(world, "w3")
    assert (world.state_of("w1"), world.state_of("w2")) == ("ready", "stopping")


@pytest.mark.parametrize("event", [ev.RemovalRequested("a", "q"), ev.ShutdownRequested()], ids=["removal", "shutdown"])
def test_when_the_agent_goes_those_who_were_heard_drain_and_the_others_are_killed(event: ev.Event) -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("left1", "w1"), unfinished("left2", "w2"), unfinished("left3", "w9"),
                      unfinished("left4", None)))
    world.tell(ev.TemplateAdopted(T, ("w1", "w2")))
    hear(world, "w1", runs=(unfinished("left1", "w1"),))
    waiting = world.request("s")
    world.tell(event)
    assert world.outcome(waiting) == ("rejected", "draining")
    assert {world.outcome(run) for run in ("left3", "left4")} == {("crashed", "worker-crashed")}
    assert (world.state_of("w1"), world.state_of("w2")) == ("draining", "killing")
    hear(world, "w2", runs=(unfinished("left2", "w2"),))
    world.die("w2")
    world.end("left1")
    assert world.outcome("left1") == ("completed", "") and world.outcome("left2") == ("crashed", "worker-crashed")
    world.die("w1")
    world.tell(ev.TemplateExited(T, "status 0"))
    assert world.supervisor.agents == {} and world.supervisor.deadlines.next() is None
    assert all_of(world.effects, ef.Dispatch) == []


def test_when_the_agent_goes_before_its_template_was_heard_nothing_is_left() -> None:
    world = CoreWorld()
    load(world, runs=(unfinished("r", "w1"),))
    world.tell(ev.RemovalRequested("a", "q"))
    assert world.outcome("r") == ("crashed", "worker-crashed")
    world.tell(ev.TemplateAdopted(T, ("w1",)))
    world.tell(ev.TemplateExited(T, "signal 9"))
    assert only(world.effects, ef.AgentRemoved).request == "q" and world.supervisor.agents == {}
