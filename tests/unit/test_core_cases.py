"""Every case of a session's run, one cell each: what it asks for by where its home is by who else is there.

The table is the one of docs/sessions.md, and a test holds the two equal.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpheusd.core import effects as ef
from tests.unit.core_world import CoreWorld, all_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sessions.md"
HEADING = "What happens, case by case"

AFFINITIES = ("soft", "strict")
OVERLAPS = ("allow", "queue", "reject", "interrupt")
HOMES = ("idle", "busy with another session", "busy with this session", "dead", "draining", "none yet")
OTHERS = ("another worker is idle", "none is idle", "none is idle, and there are `max_workers`")

WARM_NOW = "at once, at home: `warm`"
WARM_LATER = "when the home is free: `warm`"
QUEUED = "when that run is over, at home: `warm`"
REFUSED = "refused: `session-busy`"
INTERRUPTS = "that run is cancelled; then at home: `warm`"
SPILLS = "after `patience_ms`, there: `spilled`"
SPILLS_NEW = "after `patience_ms`, in a new worker: `spilled`"
SPILLS_FIRST = "after `patience_ms`, in the first to be free: `spilled`"
FIRST_FREE = "after `patience_ms`, in the first to be free: the home `warm`, another `spilled`"
NEW_NOW, LOST_NOW = "at once, there: `new`", "at once, there: `lost`"
NEW_NEW, LOST_NEW = "in a new worker: `new`", "in a new worker: `lost`"
NEW_FIRST, LOST_FIRST = "in the first to be free: `new`", "in the first to be free: `lost`"
LOST_LATER = "in another worker, once the home is dead: `lost`"

#: Home, affinity, overlap, and what happens with each of OTHERS.
ROWS = [
    ("idle",                      "either", "any",       WARM_NOW,   WARM_NOW,   WARM_NOW),
    ("busy with another session", "soft",   "any",       SPILLS,     SPILLS_NEW, FIRST_FREE),
    ("busy with another session", "strict", "any",       WARM_LATER, WARM_LATER, WARM_LATER),
    ("busy with this session",    "soft",   "allow",     SPILLS,     SPILLS_NEW, FIRST_FREE),
    ("busy with this session",    "strict", "allow",     WARM_LATER, WARM_LATER, WARM_LATER),
    ("busy with this session",    "either", "queue",     QUEUED,     QUEUED,     QUEUED),
    ("busy with this session",    "either", "reject",    REFUSED,    REFUSED,    REFUSED),
    ("busy with this session",    "either", "interrupt", INTERRUPTS, INTERRUPTS, INTERRUPTS),
    ("dead",                      "either", "any",       LOST_NOW,   LOST_NEW,   LOST_FIRST),
    ("draining",                  "soft",   "any",       SPILLS,     SPILLS_NEW, SPILLS_FIRST),
    ("draining",                  "strict", "any",       LOST_LATER, LOST_LATER, LOST_LATER),
    ("none yet",                  "either", "any",       NEW_NOW,    NEW_NEW,    NEW_FIRST),
]  # fmt: skip


class Cell(NamedTuple):
    home: str
    affinity: str
    overlap: str
    others: str

    def __str__(self) -> str:
        return ", ".join(self)


CELLS = [Cell(*choice) for choice in product(HOMES, AFFINITIES, OVERLAPS, OTHERS)]


class Scene:
    """A cell come true: session s was told to be there, and `run` of it has just been asked for.

    `blocking` is what keeps the home busy; `others` are the workers besides the home that were ready before.
    """

    def __init__(self, cell: Cell) -> None:
        self.world = CoreWorld()
        most = 2 if cell.others == OTHERS[2] else 10
        settings: dict[str, Any] = {"max_workers": most, "timeout_s": 1000.0, "queue_timeout_s": 1000.0}
        self.world.deploy(workers=2, **settings)
        self.home = "" if cell.home == "none yet" else self.world.run("s")
        self.blocking = self._blocked_home(cell, settings)
        idle = self.world.agent().idle
        while cell.others != OTHERS[0] and set(idle) - {self.home}:
            self.world.request()
        self.others = set(self.world.ready()) - {self.home}
        assert bool(set(idle) - {self.home}) == (cell.others == OTHERS[0])
        self.run = self.world.request("s", affinity=cell.affinity, overlap=cell.overlap)

    def _blocked_home(self, cell: Cell, settings: dict[str, Any]) -> str:
        if cell.home in ("busy with another session", "draining"):
            blocking = self.world.occupy(self.home)
            if cell.home == "draining":
                self.world.stage(2, at_once=True, min_workers=2, **settings)
                self.world.start_all()
                for worker in set(self.world.agent().workers) - set(self.world.ready()) - {self.home}:
                    self.world.die(worker)
            return blocking
        if cell.home == "busy with this session":
            return self.world.request("s")
        if cell.home == "dead":
            self.world.die(self.home)
            self.world.wait(1.0)
            self.world.start_all()
        return ""

    def place(self) -> str:
        """The worker that has the run; "" while it waits."""
        return self.world.worker_of(self.run) or ""

    @property
    def context(self) -> str | None:
        return self.world.context_of(self.run)

    def patience(self) -> None:
        """The run waits as long as its patience, and not less."""
        self.world.wait(0.099)
        assert not self.place()
        self.world.wait(0.001)

    def free_another(self) -> str:
        worker = self.world.supervisor.pool.workers[min(self.others)]
        self.world.end(next(iter(worker.runs)))
        return worker.id


def warm_now(scene: Scene, _: Cell) -> None:
    assert (scene.place(), scene.context) == (scene.home, "warm")


def warm_later(scene: Scene, _: Cell) -> None:
    scene.world.wait(20.0)
    scene.world.start_all()
    assert not scene.place()
    scene.world.end(scene.blocking)
    assert (scene.place(), scene.context) == (scene.home, "warm")


def refused(scene: Scene, _: Cell) -> None:
    assert scene.world.outcome(scene.run) == ("rejected", "session-busy")


def interrupts(scene: Scene, _: Cell) -> None:
    assert all_of(scene.world.effects, ef.CancelRun) == [ef.CancelRun(scene.home, scene.blocking, "cancelled")]
    scene.world.wait(1.0)
    scene.world.start_all()
    assert not scene.place()
    scene.world.end(scene.blocking, "cancelled")
    assert (scene.place(), scene.context) == (scene.home, "warm")


def first_free(scene: Scene, cell: Cell) -> None:
    spills_first(scene, cell)
    again = Scene(cell)
    again.patience()
    assert not again.place()
    again.world.end(again.blocking)
    assert (again.place(), again.context) == (again.home, "warm")


def spills(scene: Scene, _: Cell) -> None:
    scene.patience()
    assert scene.place() in scene.others and scene.context == "spilled"


def spills_new(scene: Scene, _: Cell) -> None:
    scene.patience()
    assert not scene.place()
    scene.world.start_all()
    assert scene.place() and scene.place() not in {*scene.others, scene.home} and scene.context == "spilled"


def spills_first(scene: Scene, _: Cell) -> None:
    scene.patience()
    scene.world.start_all()
    assert not scene.place()
    assert scene.free_another() == scene.place() and scene.context == "spilled"


def lost_later(scene: Scene, _: Cell) -> None:
    scene.world.wait(20.0)
    scene.world.start_all()
    scene.world.end(scene.blocking)
    assert not scene.place() and scene.world.state_of(scene.home) == "stopping"
    scene.world.die(scene.home)
    if not scene.place():
        scene.free_another()
    assert scene.place() and scene.place() != scene.home and scene.context == "lost"


def now(context: str) -> "Check":
    def check(scene: Scene, _: Cell) -> None:
        assert scene.place() in scene.others and scene.context == context
    return check


def in_a_new_worker(context: str) -> "Check":
    def check(scene: Scene, _: Cell) -> None:
        assert not scene.place()
        scene.world.start_all()
        assert scene.place() and scene.place() not in scene.others and scene.context == context
    return check


def in_the_first_free(context: str) -> "Check":
    def check(scene: Scene, _: Cell) -> None:
        scene.world.start_all()
        assert not scene.place()
        assert scene.free_another() == scene.place() and scene.context == context
    return check


Check = Callable[[Scene, Cell], None]
CHECKS: dict[str, Check] = {
    WARM_NOW: warm_now, WARM_LATER: warm_later, QUEUED: warm_later, REFUSED: refused, INTERRUPTS: interrupts,
    SPILLS: spills, SPILLS_NEW: spills_new, SPILLS_FIRST: spills_first, FIRST_FREE: first_free,
    NEW_NOW: now("new"), LOST_NOW: now("lost"), NEW_NEW: in_a_new_worker("new"), LOST_NEW: in_a_new_worker("lost"),
    NEW_FIRST: in_the_first_free("new"), LOST_FIRST: in_the_first_free("lost"), LOST_LATER: lost_later,
}  # fmt: skip


def expected(cell: Cell) -> list[str]:
    """What the rows say about a cell."""
    return [row[3 + OTHERS.index(cell.others)] for row in ROWS
            if row[0] == cell.home and row[1] in (cell.affinity, "either") and row[2] in (cell.overlap, "any")]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_it_happens_as_the_table_says(cell: Cell) -> None:
    [outcome] = expected(cell)
    scene = Scene(cell)
    CHECKS[outcome](scene, cell)
    if outcome is not REFUSED:
        scene.world.end(scene.run)
        assert scene.world.answer(scene.run).context == scene.context


def test_the_table_has_each_cell_once() -> None:
    assert len(CELLS) == 144
    assert [cell for cell in CELLS if len(expected(cell)) != 1] == []


def test_the_page_has_this_table() -> None:
    section = DOCUMENT.read_text().split(f"## {HEADING}\n")[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == table(), (
        f"put this under `{HEADING}`:\n" + "\n".join(table()))


def table() -> list[str]:
    """The rows as markdown."""
    lines = ["| home | affinity | overlap | " + " | ".join(OTHERS) + " |", "|---" * 6 + "|"]
    for home, affinity, overlap, *outcomes in ROWS:
        asked = [word if word in ("either", "any") else f"`{word}`" for word in (affinity, overlap)]
        lines.append(f"| {home} | " + " | ".join([*asked, *outcomes]) + " |")
    return lines
