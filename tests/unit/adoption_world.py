"""The next daemon starts: what it finds on disk, and what those say who outlived the last one."""

from typing import Any

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from tests.unit.core_world import CoreWorld

#: The template that is there unless a test says otherwise.
T = "t-old-1"


def orphan(template: str = T, version: int = 1, **settings: Any) -> ev.Orphan:
    return ev.Orphan(template, version, Settings(**settings))


def unfinished(
    run: str, worker: str | None, session: str | None = None, context: str | None = None, left_s: float = 100.0,
    over: bool = False,
) -> ev.Unfinished:  # fmt: skip
    return ev.Unfinished(run, session, context, worker, left_s, over)


def load(
    world: CoreWorld, *orphans: ev.Orphan, sessions: tuple[ev.Seen, ...] = (), runs: tuple[ev.Unfinished, ...] = (),
    version: int = 1, **settings: Any,
) -> None:  # fmt: skip
    """The next daemon starts, and finds this on disk."""
    world.tell(ev.AgentLoaded("a", version, Settings(**settings), sessions, orphans or (orphan(**settings),), runs))


def hear(world: CoreWorld, worker: str, *sessions: ev.Seen, runs: tuple[ev.Unfinished, ...] = ()) -> list[ef.Effect]:
    return world.tell(ev.WorkerAdopted(worker, sessions, runs))


def adopted(*workers: str, **settings: Any) -> CoreWorld:
    """A world with one orphan that has dialled, and none of its workers yet."""
    world = CoreWorld()
    load(world, **settings)
    world.tell(ev.TemplateAdopted(T, workers))
    return world


def home(world: CoreWorld, session: str) -> str | None:
    known = world.agent().sessions.get(session)
    return known.live_home.id if known is not None and known.live_home is not None else None
