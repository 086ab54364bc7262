"""What somebody is told of an agent that is refused for a while."""

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import AgentState
from tests.unit.core_world import CoreWorld, all_of


def test_a_worker_that_is_seen_late_to_have_died_with_its_template_is_no_news() -> None:
    world = CoreWorld()
    [worker] = world.deploy()
    template = world.agent().current
    assert template is not None
    world.tell(ev.TemplateExited(template.id, "signal 9"))
    while world.agent().state is AgentState.ACTIVE:
        world.wait(1.0)
        starting = all_of(world.effects, ef.StartTemplate)[-1].template
        if starting in world.agent().templates:
            world.tell(ev.TemplateFailed(starting, "Not a directory"))
    world.die(worker)
    assert "Not a directory" in world.answer(world.request()).message
