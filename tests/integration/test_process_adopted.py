"""A template that somebody else has started, in a real sandbox: proved dead by its first process, or else swept."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import uvloop

from orpheusd.process import sandbox, survivors
from orpheusd.process.adopted import AdoptedTemplate
from orpheusd.process.launch import TemplateProcess, launch_template
from orpheusd.process.pidfds import PidFd
from orpheusd.process.sandbox import TemplateSpec
from tests.eventually import eventually

#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()

#: A process that the first of the sandbox has forked, and that looks like it in all that it can choose itself.
FORKS = "import os, time\nos.fork()\nprint('there', flush=True)\ntime.sleep(60)\n"

Scenario = Callable[["Template"], Awaitable[None]]


class Template:
    """One in its sandbox, as seen from outside: bubblewrap, the first process inside and its child."""

    def __init__(self, id: str, process: TemplateProcess) -> None:
        self.id = id
        self.tag = f"ORPHEUS_SANDBOX={id}"
        assert process.inner_pid is not None
        self.outer, self.first = psutil.Process(process.pid), psutil.Process(process.inner_pid)
        self.child, = eventually(self.first.children)

    def living(self) -> list[psutil.Process]:
        return [one for one in (self.outer, self.first, self.child)
                if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def within(tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario with a template."""
    isolation = sandbox.detect("auto")
    if isolation.mode != "bwrap":
        pytest.skip(isolation.reason)
    for name in ("code", "ws", "link"):
        (tmp_path / name).mkdir()
    spec = TemplateSpec(f"t-{os.getpid()}-{tmp_path.name}", "my-agent", tmp_path / "code", tmp_path / "ws", None,
                        tmp_path / "link", network=False)
    command = sandbox.template_argv(
        isolation, sandbox.find_interpreter(), spec, sandbox.make_lib_dir(tmp_path / "lib"), FORKS)

    @asynccontextmanager
    async def template() -> AsyncIterator[Template]:
        there = asyncio.Event()
        process = await launch_template(command, b"", lambda _line: there.set())
        try:
            await there.wait()
            yield Template(spec.template_id, process)
        finally:
            process.kill()
            await process.wait()

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with template() as one:
                await scenario(one)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(whole(), 20))

    return run


def test_only_the_first_of_a_sandbox_proves_it_dead(within: Callable[[Scenario], None]) -> None:
    async def scenario(template: Template) -> None:
        def outer_of(process: psutil.Process, tag: str) -> int | None:
            held = PidFd(process.pid)
            try:
                return survivors.around(held, tag)
            finally:
                held.close()

        assert outer_of(template.first, template.tag) == template.outer.pid
        assert outer_of(template.first, template.tag + "0") is None
        assert outer_of(template.child, template.tag) is None, "its parent carries the tag too, but is inside"
        assert outer_of(template.outer, template.tag) is None

    within(scenario)


@pytest.mark.parametrize("who", ["first", "child", "nobody"])
def test_nothing_is_left_whoever_has_dialled(
    within: Callable[[Scenario], None], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    sweep = survivors.kill_tagged

    async def kill_tagged(tag: str) -> int:
        swept.append(tag)
        return await sweep(tag)

    monkeypatch.setattr(survivors, "kill_tagged", kill_tagged)

    async def scenario(template: Template) -> None:
        adopted = AdoptedTemplate(template.id)
        if who != "nobody":
            adopted.meet(PidFd(getattr(template, who).pid))
        adopted.kill()
        assert await adopted.wait() is None
        assert template.living() == []
        assert swept == ([] if who == "first" else [template.tag]), "all of /proc is read only where it has to be"

    within(scenario)


def test_who_dials_in_its_place_afterwards_is_not_held(within: Callable[[Scenario], None]) -> None:
    async def scenario(template: Template) -> None:
        adopted = AdoptedTemplate(template.id)
        adopted.meet(PidFd(template.child.pid))
        late = PidFd(template.first.pid)
        adopted.meet(late)
        assert late.fileno() < 0
        template.child.kill()
        assert await adopted.wait() is None
        assert template.living() == []

    within(scenario)
