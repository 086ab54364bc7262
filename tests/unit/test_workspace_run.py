"""The current run: what a handler sees of it, alone and beside others, and outside of any."""

import asyncio
import contextvars
import time
from pathlib import Path
from typing import Any

import pytest

import workspace
from workspace import _runtime


def active(id: str, **changes: Any) -> _runtime.ActiveRun:
    facts: dict[str, Any] = {
        "id": id, "agent": "probe", "version": 2, "session": "s", "context": "new", "turn": 1, "deadline": None,
        "deadline_monotonic_s": None, "emit": lambda _event: None, **changes}
    return _runtime.ActiveRun(**facts)


def within(run: _runtime.ActiveRun, function: Any, *args: Any) -> Any:
    context = contextvars.copy_context()
    context.run(_runtime.active.set, run)
    return context.run(function, *args)


def test_outside_a_run_there_is_nothing() -> None:
    run = workspace.run
    facts = (run.id, run.agent, run.version, run.session, run.context, run.turn, run.deadline, run.remaining_s)
    assert set(facts) == {None}
    assert repr(run) == "<no run>"
    workspace.emit({"to": "nobody"})


def test_inside_a_run_its_facts_are_there() -> None:
    def look() -> tuple[Any, ...]:
        run = workspace.run
        return (run.id, run.agent, run.version, run.session, run.context, run.turn, repr(run))

    assert within(active("r-1"), look) == ("r-1", "probe", 2, "s", "new", 1, "<run r-1 of probe>")


@pytest.mark.parametrize(("left_s", "low", "high"), [(10.0, 9.0, 10.0), (-5.0, 0.0, 0.0)])
def test_what_remains_is_never_below_zero(left_s: float, low: float, high: float) -> None:
    run = active("r-1", deadline=time.time() + left_s, deadline_monotonic_s=time.monotonic() + left_s)
    assert low <= within(run, lambda: workspace.run.remaining_s) <= high


def test_events_go_to_their_own_run() -> None:
    events: list[tuple[str, int]] = []

    async def work(name: str) -> None:
        _runtime.active.set(active(name, emit=lambda event: events.append((name, event))))
        for number in range(3):
            workspace.emit(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(asyncio.ensure_future(work(name)) for name in "abc"))

    asyncio.run(main())
    assert sorted(events) == [(name, number) for name in "abc" for number in range(3)]


def test_being_told_to_stop_is_no_exception_an_agent_swallows_by_accident() -> None:
    for told in (workspace.Cancelled, workspace.TimedOut):
        assert issubclass(told, BaseException) and not issubclass(told, Exception)
        assert told.__module__ == "workspace"


def test_the_library_is_what_its_documentation_lists() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "workspace.md").read_text()
    for name in workspace.__all__:
        assert f"`workspace.{name}" in page or f"`@workspace.{name}" in page, name


def test_a_lock_waits_no_longer_than_the_run_has(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE_DIR", str(tmp_path))

    def wait() -> None:
        with workspace.lock("held"):
            pass

    with workspace.lock("held"), pytest.raises(TimeoutError):
        within(active("r-1", deadline_monotonic_s=time.monotonic() + 0.05), wait)
