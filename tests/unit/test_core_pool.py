"""The pool: trials of versions, starts that fail, restarts, quarantine, and as many workers as are wanted."""

import pytest

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import AgentState, Settings
from orpheusd.core.orders import KILL_RETRY_S
from orpheusd.core.pool import Policy
from orpheusd.core.restart import BACKOFF_FIRST_S, BACKOFF_MOST_S, INTENSITY, QUARANTINE_S, WINDOW_S
from tests.unit.core_world import UNIFORM, CoreWorld, all_of, only

#: What a slot waits after its first failure.
FIRST_DELAY_S = BACKOFF_FIRST_S * (0.5 + UNIFORM / 2)


# Versions on trial


def test_a_first_version_is_promoted_when_a_worker_of_it_is_ready() -> None:
    world = CoreWorld()
    template = world.stage(1)
    fork = only(world.tell(ev.TemplateReady(template)), ef.ForkWorker)
    assert fork.template == template and all_of(world.effects, ef.VersionPromoted) == []
    assert world.tell(ev.WorkerReady(fork.worker)) == [ef.VersionPromoted("a", 1, "q1")]
    assert world.run() == fork.worker


def test_what_was_current_serves_until_the_new_version_is_promoted() -> None:
    world = CoreWorld()
    [old] = world.deploy()
    template = world.stage(2)
    assert world.run() == old
    fork = only(world.tell(ev.TemplateReady(template)), ef.ForkWorker)
    assert world.run() == old
    effects = world.tell(ev.WorkerReady(fork.worker))
    assert ef.StopWorker(old) in effects and ef.VersionPromoted("a", 2, "q2") not in effects
    assert only(effects, ef.VersionPromoted).version == 2
    assert world.run() == fork.worker
    assert ef.StopTemplate("t-b-1") in world.die(old)


def test_a_restart_is_the_same_version_on_trial_again() -> None:
    world = CoreWorld()
    [old] = world.deploy()
    world.stage(1)
    world.start_all()
    assert only(world.effects, ef.VersionPromoted).version == 1
    [new] = world.ready()
    assert new != old and world.state_of(old) == "stopping"


@pytest.mark.parametrize("how", ["failed", "template failed", "template exited", "worker exited", "misbehaved"])
def test_a_version_that_does_not_start_is_refused_and_changes_nothing(how: str) -> None:
    world = CoreWorld()
    [old] = world.deploy()
    template = world.stage(2, max_workers=3)
    if how == "template failed":
        effects = world.tell(ev.TemplateFailed(template, "no such module"))
    elif how == "template exited":
        effects = world.tell(ev.TemplateExited(template, "exit 3"))
    else:
        worker = only(world.tell(ev.TemplateReady(template)), ef.ForkWorker).worker
        effects = {
            "failed": lambda: world.tell(ev.WorkerFailed(worker, "no such module")),
            "worker exited": lambda: world.die(worker),
            "misbehaved": lambda: world.tell(ev.WorkerMisbehaved(worker, "said nonsense")),
        }[how]()
        if how != "worker exited":
            assert only(world.effects, ef.KillWorker).worker == worker
            effects += world.die(worker)
    refused = only(effects, ef.VersionRefused)
    said = {"failed": "no such module", "template failed": "no such module", "template exited": "exit 3",
            "worker exited": "signal 9", "misbehaved": "said nonsense"}[how]
    assert refused.version == 2 and said in refused.message
    assert how == "template exited" or ef.KillTemplate(template) in world.effects
    assert world.run() == old and world.agent().settings.max_workers == 10
    assert len(world.agent().record) == 0


def test_a_first_version_that_is_refused_leaves_no_agent() -> None:
    world = CoreWorld()
    template = world.stage(1)
    world.tell(ev.TemplateFailed(template, "no"))
    world.tell(ev.TemplateExited(template, "signal 9"))
    assert world.supervisor.agents == {} and world.supervisor.next_deadline() is None


def test_only_one_version_is_on_trial() -> None:
    world = CoreWorld()
    world.deploy()
    world.stage(2)
    refused = only(world.tell(ev.VersionStaged("a", 3, Settings(), "late")), ef.VersionRefused)
    assert refused.request == "late" and "another deploy" in refused.message
    world.start_all()
    assert only(world.effects, ef.VersionPromoted).version == 2


def test_a_trial_has_a_deadline() -> None:
    world = CoreWorld(Policy(start_timeout_s=30.0))
    [old] = world.deploy()
    template = world.stage(2)
    worker = only(world.tell(ev.TemplateReady(template)), ef.ForkWorker).worker
    world.wait(29.999)
    assert all_of(world.effects, ef.VersionRefused) == []
    world.wait(0.001)
    assert world.effects[-1] == ef.KillWorker(
        worker, "the worker was not ready within 30 s (is something slow or waiting at import?)")
    world.die(worker)
    assert "not ready within 30 s" in only(world.effects, ef.VersionRefused).message
    assert world.ready() == [old]


def test_a_template_that_never_speaks_is_killed() -> None:
    world = CoreWorld(Policy(start_timeout_s=30.0))
    template = world.stage(1)
    world.wait(30.0)
    assert "template was not ready within 30 s" in only(world.effects, ef.VersionRefused).message
    assert world.effects[-1] == ef.KillTemplate(template)
    world.wait(KILL_RETRY_S)
    assert world.effects[-2:] == [ef.KillTemplate(template)] * 2


# Death and restart


def test_a_slot_waits_longer_each_time_its_worker_dies() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    delays: list[float] = []
    for _ in range(3):
        world.die(worker)
        died = world.now
        worker = world.next_fork()
        delays.append(world.now - died)
        world.tell(ev.WorkerReady(worker))
    assert delays == [pytest.approx(FIRST_DELAY_S * factor) for factor in (1, 2, 4)]


def test_a_completed_run_clears_the_record_and_the_backoff() -> None:
    world = CoreWorld()
    for worker in world.deploy():
        world.die(worker)
    for _ in range(2 * INTENSITY):
        world.wait(FIRST_DELAY_S)
        world.start_all()
        world.run()
        assert len(world.agent().record) == 0
        world.die(world.ready()[0])
    assert world.agent().state is AgentState.ACTIVE


def test_a_failed_run_clears_nothing() -> None:
    world = CoreWorld()
    world.die(world.deploy()[0])
    world.wait(FIRST_DELAY_S)
    world.start_all()
    world.end(world.request(), "failed")
    assert len(world.agent().record) == 1


def test_workers_that_die_together_count_as_one_failure() -> None:
    world = CoreWorld()
    for worker in world.deploy(workers=8):
        world.die(worker)
    assert len(world.agent().record) == 1 and world.agent().state is AgentState.ACTIVE


def test_the_longest_backoff_has_an_end() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    slot = world.supervisor.pool.workers[worker].slot
    for _ in range(20):
        slot.failed(0.0, lambda: 1.0)
    assert slot.not_before == BACKOFF_MOST_S


def test_an_agent_that_keeps_dying_is_quarantined_and_released() -> None:
    world = CoreWorld()
    world.die(world.deploy()[0])
    waiting = world.request("s")
    for _ in range(INTENSITY - 1):
        assert world.agent().state is AgentState.ACTIVE
        world.die(world.next_fork())
    assert world.agent().state is AgentState.QUARANTINED
    assert world.outcome(waiting) == ("rejected", "quarantined")
    refused = world.request()
    assert world.outcome(refused) == ("rejected", "quarantined") and "signal 9" in world.answer(refused).message
    world.wait(QUARANTINE_S - 0.001)
    assert world.agent().state is AgentState.QUARANTINED
    world.wait(0.001)
    assert world.agent().state is AgentState.ACTIVE
    world.start_all()
    assert world.run()


# fault 75
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("min_workers", "asked"), [(1, 0), (1, 3), (10, 3)])
def test_a_crash_loop_is_ten_starts_a_minute_at_most(
    uniform: float, min_workers: int, asked: int
) -> None:
    """Of an agent whose workers die before they are ready, however many it wants and however often it is asked."""
    world = CoreWorld(uniform=uniform)
    world.deploy(workers=min_workers, max_workers=10)
    for worker in world.ready():
        world.die(worker)
    forked: list[float] = []
    for _ in range(1000):
        world.effects.clear()
        for _ in range(asked):
            world.request()
        world.wait(0.1)
        for fork in all_of(world.effects, ef.ForkWorker):
            forked.append(world.now)
            world.die(fork.worker)
        for template in list(world.supervisor.pool.templates.values()):
            if template.state.value == "starting":
                world.tell(ev.TemplateReady(template.id))
    assert len(forked) > INTENSITY
    assert max(sum(at <= other < at + 60.0 for other in forked) for at in forked) <= 10


def test_a_completed_run_lets_all_slots_be_filled_again() -> None:
    world = CoreWorld()
    for worker in world.deploy(workers=5):
        world.die(worker)
    world.wait(FIRST_DELAY_S)
    world.start_all()
    assert len(world.ready()) == 1
    world.run()
    world.start_all()
    assert len(world.ready()) == 5


def test_failures_far_apart_are_no_reason_for_quarantine() -> None:
    world = CoreWorld()
    world.deploy()
    for _ in range(2 * INTENSITY):
        world.die(world.ready()[0])
        world.tell(ev.WorkerReady(world.next_fork()))
        world.wait(WINDOW_S)
    assert world.agent().state is AgentState.ACTIVE


def test_a_version_that_works_ends_a_quarantine() -> None:
    world = CoreWorld()
    world.die(world.deploy()[0])
    for _ in range(INTENSITY - 1):
        world.die(world.next_fork())
    world.stage(2)
    world.start_all()
    assert world.agent().state is AgentState.ACTIVE and world.run() == world.ready()[0]


def test_a_template_that_dies_is_started_again_and_its_workers_are_mourned() -> None:
    world = CoreWorld()
    workers = world.deploy(workers=2)
    run = world.request("s")
    template = world.agent().current
    assert template is not None
    world.tell(ev.TemplateExited(template.id, "signal 11"))
    for worker in workers:
        world.die(worker)
    assert world.outcome(run) == ("crashed", "worker-crashed")
    world.wait(FIRST_DELAY_S)
    assert all_of(world.effects, ef.StartTemplate)[-1].version == 1
    world.start_all()
    world.wait(FIRST_DELAY_S)  # nothing has been completed since: one worker after the other
    world.start_all()
    assert len(world.ready()) == 2 and world.context_of(world.request("s")) == "lost"


def test_a_template_that_started_waits_no_longer_the_next_time() -> None:
    world = CoreWorld()
    world.deploy(workers=0)
    for _ in range(3):
        world.tell(ev.TemplateExited(all_of(world.effects, ef.StartTemplate)[-1].template, "signal 9"))
        started = len(all_of(world.effects, ef.StartTemplate))
        world.wait(FIRST_DELAY_S)
        assert len(all_of(world.effects, ef.StartTemplate)) == started + 1
        world.start_all()


def test_a_kill_that_does_not_work_is_repeated_and_its_runs_are_given_up() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    run = world.request()
    world.tell(ev.WorkerMisbehaved(worker, "nonsense"))
    world.wait(KILL_RETRY_S)
    assert [kill.worker for kill in all_of(world.effects, ef.KillWorker)] == [worker] * 2
    assert all_of(world.effects, ef.KillWorker)[0].why == "protocol violation: nonsense"
    assert world.outcome(run) == ("crashed", "worker-crashed")


# Draining


def test_a_draining_home_finishes_its_run_and_its_session_waits_for_the_proof_of_death() -> None:
    world = CoreWorld()
    [home] = world.deploy()
    running = world.request("s")
    world.stage(2, at_once=True)
    world.start_all()
    assert world.state_of(home) == "draining"
    strict = world.request("s", affinity="strict")
    world.end(running)
    assert world.outcome(running) == ("completed", "") and world.state_of(home) == "stopping"
    world.wait(1.0)
    assert world.waits(strict)
    world.die(home)
    assert (world.worker_of(strict), world.context_of(strict)) == (world.ready()[0], "lost")


def test_a_restart_waits_for_running_runs_as_long_as_they_may_take() -> None:
    world = CoreWorld(Policy(drain_s=5.0))
    [home] = world.deploy(timeout_s=300.0)
    world.request("s")
    world.stage(2, at_once=True)
    world.start_all()
    world.wait(299.0)
    assert world.state_of(home) == "draining" and all_of(world.effects, ef.CancelRun) == []
    world.wait(1.0)
    assert only(world.effects, ef.CancelRun).reason == "timed-out"


def test_a_worker_that_does_not_leave_is_killed() -> None:
    world = CoreWorld(Policy(grace_s=2.0))
    [old] = world.deploy()
    world.stage(2)
    world.start_all()
    assert world.state_of(old) == "stopping"
    world.wait(2.0)
    assert world.state_of(old) == "killing"


# Removal and the end of the daemon


def test_a_removed_agent_drains_and_is_forgotten() -> None:
    world = CoreWorld()
    busy, idle = world.deploy(workers=2, max_workers=2, affinity="strict")
    running = world.request("s")
    waiting = world.request("s")
    effects = world.tell(ev.RemovalRequested("a", "gone"))
    assert ef.StopWorker(idle) in effects and world.state_of(busy) == "draining"
    assert world.outcome(waiting) == ("rejected", "draining")
    assert world.outcome(world.request()) == ("rejected", "draining")
    assert world.tell(ev.RemovalRequested("a", "again")) == [] and world.supervisor.ignored == 1
    assert "being removed" in only(world.tell(ev.VersionStaged("a", 2, Settings(), "q")), ef.VersionRefused).message
    world.end(running)
    world.die(idle)
    assert only(world.die(busy), ef.StopTemplate)
    template = only(world.effects, ef.StopTemplate).template
    assert world.tell(ev.TemplateExited(template, "exit 0")) == [ef.AgentRemoved("a", "gone")]
    assert world.supervisor.agents == {}
    assert world.outcome(world.request()) == ("rejected", "not-found")


def test_removal_refuses_the_version_on_trial() -> None:
    world = CoreWorld()
    world.deploy()
    world.stage(2)
    refused = only(world.tell(ev.RemovalRequested("a", "gone")), ef.VersionRefused)
    assert "being removed" in refused.message


def test_removal_does_not_wait_for_ever_for_a_run() -> None:
    world = CoreWorld(Policy(drain_s=10.0, grace_s=2.0))
    [worker] = world.deploy()
    run = world.request()
    world.tell(ev.RemovalRequested("a", "gone"))
    world.wait(10.0)
    assert only(world.effects, ef.CancelRun).run == run
    world.wait(2.0)
    assert world.effects[-1] == ef.AbortWorker(worker, "a run was cancelled and did not stop within 2 s")
    world.die(worker)
    assert world.outcome(run) == ("cancelled", "cancelled")


def test_the_daemon_stops_when_no_process_is_left() -> None:
    world = CoreWorld()
    [first] = world.deploy("a")
    [second] = world.deploy("b")
    run = world.request(agent="b")
    effects = world.tell(ev.ShutdownRequested())
    assert ef.StopWorker(first) in effects and ef.Stopped() not in effects
    assert world.tell(ev.ShutdownRequested()) == [] and world.supervisor.ignored == 1
    assert world.outcome(world.request()) == ("rejected", "draining")
    assert "stopping" in only(world.tell(ev.VersionStaged("c", 1, Settings(), "q")), ef.VersionRefused).message
    world.end(run)
    for worker in (first, second):
        world.die(worker)
    templates = [effect.template for effect in all_of(world.effects, ef.StopTemplate)]
    assert len(templates) == 2
    assert ef.Stopped() not in world.tell(ev.TemplateExited(templates[0], "exit 0"))
    assert world.tell(ev.TemplateExited(templates[1], "exit 0")) == [ef.Stopped()]
