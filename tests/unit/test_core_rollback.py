"""Rolled back: a version that breaks in its first minute gives way to the one before it."""

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import AgentState, Settings
from orpheusd.core.restart import INTENSITY, PROBATION_DEATHS, PROBATION_S, QUARANTINE_S
from tests.unit.core_world import CoreWorld, all_of, only


def test_a_version_that_crashes_at_its_first_runs_is_rolled_back() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    assert all_of(world.effects, ef.RolledBack) == [] and world.agent().state is AgentState.ACTIVE
    waiting = world.request("s")
    assert world.waits(waiting)
    world.start_all()
    assert only(world.effects, ef.RolledBack) == ef.RolledBack("a", 1, 2, "its worker ended (signal 9)")
    assert world.agent().current is not None and world.agent().current.version == 1
    assert world.worker_of(waiting) in world.ready()
    world.end(waiting)
    assert len(all_of(world.effects, ef.VersionPromoted)) == 1, "that of version 2"


def test_a_version_that_is_given_up_gets_no_more_runs() -> None:
    world = CoreWorld()
    world.deploy()
    first = world.redeploy(min_workers=3)
    second, third = (id for id in world.ready() if id != first)
    running = world.request()
    assert world.worker_of(running) is not None
    slow = str(world.worker_of(running))
    world.die(first if slow != first else second)
    world.wait(0.1)
    world.fall(next(id for id in (second, third) if id != slow and id in world.agent().workers), 2)
    assert world.agent().given_up and world.state_of(slow) == "draining"
    assert world.waits(world.request())
    world.end(running)
    assert world.outcome(running) == ("completed", "")
    world.start_all()
    assert only(world.effects, ef.RolledBack).version == 1


def test_a_completed_run_is_proof_that_a_version_works() -> None:
    world = CoreWorld()
    world.deploy()
    new = world.redeploy()
    assert world.run() == new
    world.fall(new, INTENSITY)
    assert all_of(world.effects, ef.RolledBack) == [] and world.agent().state is AgentState.QUARANTINED


def test_after_the_first_minute_nothing_is_rolled_back() -> None:
    world = CoreWorld()
    world.deploy()
    new = world.redeploy()
    world.wait(PROBATION_S)
    world.fall(new, INTENSITY)
    assert not world.agent().given_up and world.agent().state is AgentState.QUARANTINED


def test_a_first_version_has_nothing_to_go_back_to() -> None:
    world = CoreWorld()
    world.stage(1)
    world.start_all()
    world.fall(world.ready()[0], INTENSITY)
    assert world.agent().state is AgentState.QUARANTINED


def test_when_the_older_one_does_not_start_either_the_agent_is_quarantined() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    waiting = world.request()
    world.tell(ev.TemplateFailed(all_of(world.effects, ef.StartTemplate)[-1].template, "its packages are gone"))
    assert world.agent().state is AgentState.QUARANTINED and not world.agent().given_up
    said = world.answer(waiting)
    assert said.code == "quarantined" and "signal 9" in said.message and "its packages are gone" in said.message
    assert all_of(world.effects, ef.VersionRefused) == []
    world.wait(QUARANTINE_S)
    world.start_all()
    assert world.run() and world.agent().current is not None and world.agent().current.version == 2


def test_what_was_rolled_back_to_is_not_rolled_back() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    world.start_all()
    world.fall(world.ready()[-1], INTENSITY)
    assert world.agent().state is AgentState.QUARANTINED and len(all_of(world.effects, ef.RolledBack)) == 1


def test_a_restart_is_not_a_new_beginning() -> None:
    world = CoreWorld()
    world.deploy()
    world.redeploy()
    world.wait(PROBATION_S - 1)
    world.stage(2, at_once=True)
    world.start_all()
    world.wait(2.0)
    world.fall(world.ready()[-1], PROBATION_DEATHS)
    assert not world.agent().given_up


def test_a_deploy_goes_before_a_rollback_and_is_rolled_back_to_what_worked() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    back = all_of(world.effects, ef.StartTemplate)[-1].template
    world.stage(3)
    assert ef.KillTemplate(back) in world.effects
    world.start_all()
    assert all_of(world.effects, ef.RolledBack) == []
    world.fall(world.ready()[-1], PROBATION_DEATHS)
    world.start_all()
    assert only(world.effects, ef.RolledBack)[1:3] == (1, 3)


def test_when_the_deploy_is_refused_the_rollback_goes_on() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    template = world.stage(3)
    world.tell(ev.TemplateFailed(template, "no such module"))
    world.tell(ev.TemplateExited(template, "signal 9"))
    world.start_all()
    assert only(world.effects, ef.VersionRefused).version == 3 and only(world.effects, ef.RolledBack).version == 1


def test_a_version_on_trial_is_not_touched_when_the_current_one_is_given_up() -> None:
    world = CoreWorld()
    world.deploy()
    worker = world.redeploy()
    template = world.stage(3)
    trial = only(world.tell(ev.TemplateReady(template)), ef.ForkWorker).worker
    world.fall(worker, PROBATION_DEATHS)
    assert world.agent().given_up and world.state_of(trial) == "starting"
    world.tell(ev.WorkerReady(trial))
    assert not world.agent().given_up and world.run() == trial


def test_removal_ends_a_rollback() -> None:
    world = CoreWorld()
    world.deploy()
    world.fall(world.redeploy(), PROBATION_DEATHS)
    waiting = world.request()
    world.tell(ev.RemovalRequested("a", "gone"))
    assert world.outcome(waiting) == ("rejected", "draining")
    for template in list(world.supervisor.pool.templates):
        world.tell(ev.TemplateExited(template, "signal 9"))
    for worker in list(world.supervisor.pool.workers):
        world.die(worker)
    assert only(world.effects, ef.AgentRemoved).request == "gone"


def test_a_version_that_was_quarantined_is_nothing_to_go_back_to() -> None:
    world = CoreWorld()
    world.die(world.deploy()[0])
    for _ in range(INTENSITY - 1):
        world.die(world.next_fork())
    world.fall(world.redeploy(), INTENSITY)
    assert world.agent().state is AgentState.QUARANTINED and all_of(world.effects, ef.RolledBack) == []


def test_the_settings_come_back_with_the_version() -> None:
    world = CoreWorld()
    world.deploy(max_workers=3)
    world.fall(world.redeploy(max_workers=7), PROBATION_DEATHS)
    world.start_all()
    assert world.agent().settings == Settings(max_workers=3, min_workers=1)
