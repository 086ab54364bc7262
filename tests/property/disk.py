"""What the disk has when the daemon dies: the run log and what is remembered of sessions, each some writes behind."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings

#: Writes that are on their way at most. A kill forgets the last of them, or none.
LAG = 4


@dataclass(frozen=True)
class Row:
    """A run that has no end in the log."""

    agent: str
    session: str | None
    context: str | None = None
    worker: str | None = None


@dataclass(frozen=True)
class Note:
    turns: int
    last_used: float
    home: str | None


class Disk:
    """Invariant: `rows`, `ended` and `notes` are what has arrived, `_log` and `_book` the writes that have not.
    `acknowledged` are runs whose ends have arrived since it was looked at last."""

    def __init__(self) -> None:
        self.current: dict[str, int] = {}
        self.settings: dict[tuple[str, int], Settings] = {}
        self.rows: dict[str, Row] = {}
        self.ended: set[str] = set()
        self.notes: dict[tuple[str, str], Note] = {}
        self.acknowledged: list[str] = []
        self._log: deque[Callable[[], None]] = deque()
        self._book: deque[Callable[[], None]] = deque()
        self._staged: dict[str, tuple[str, int, Settings]] = {}
        self._asked: dict[str, str] = {}

    def saw(self, event: ev.Event, effects: list[ef.Effect], now: float) -> None:
        if isinstance(event, ev.AgentLoaded):
            self._serves(event.agent, event.version, event.settings)
            for seen in event.sessions:
                self.notes[event.agent, seen.id] = Note(seen.turns, now - seen.idle_s, seen.home)
        elif isinstance(event, ev.VersionStaged):
            self._staged[event.request] = (event.agent, event.version, event.settings)
        elif isinstance(event, ev.RunRequested) and event.run not in self._asked:
            self._asked[event.run] = event.agent
            self._log.append(lambda: self.rows.update({event.run: Row(event.agent, event.session)}))
        for effect in effects:
            self._write(effect, now)
        self._arrive()

    def found(self, agent: str, worker: str, runs: tuple[ev.Unfinished, ...]) -> None:
        """A worker has told of these runs: what the log did not know of them is written."""
        for run in runs:
            self.rows[run.run] = Row(agent, run.session, run.context, worker)

    def fall(self, forgotten: int, behind: int) -> None:
        """The daemon dies: so many of the last writes of each book have not arrived, and the others have."""
        for writes, lost in ((self._log, forgotten), (self._book, behind)):
            for _ in range(min(lost, len(writes))):
                writes.pop()
            while writes:
                writes.popleft()()

    def loaded(self, agent: str, orphans: tuple[ev.Orphan, ...], now: float) -> ev.AgentLoaded:
        """What the next daemon reads of an agent."""
        version = self.current[agent]
        settings = self.settings[agent, version]
        seen = [ev.Seen(id, note.turns, max(0.0, now - note.last_used), note.home)
                for (owner, id), note in sorted(self.notes.items(), key=lambda item: item[1].last_used)
                if owner == agent and note.last_used + settings.session_ttl_s > now]
        runs = tuple(ev.Unfinished(id, row.session, row.context, row.worker, settings.timeout_s)
                     for id, row in self.rows.items() if row.agent == agent)
        return ev.AgentLoaded(agent, version, settings, tuple(seen[-settings.session_max:]), orphans, runs)

    def _write(self, effect: ef.Effect, now: float) -> None:
        if isinstance(effect, ef.Dispatch):
            self._log.append(lambda: self._started(effect))
            if effect.context in ("new", "lost"):
                self._book.append(lambda: self._begun(effect, now))
        elif isinstance(effect, ef.Resolve):
            self._log.append(lambda: self._ended(effect))
            if effect.session is not None and effect.context is not None:
                self._book.append(lambda: self._seen(effect, now))
        elif isinstance(effect, ef.EndSession):
            self._book.append(lambda: self._forget(effect))
        elif isinstance(effect, ef.VersionPromoted):
            self._serves(*self._staged[effect.request])
        elif isinstance(effect, ef.RolledBack):
            self._serves(effect.agent, effect.version, self.settings[effect.agent, effect.version])
        elif isinstance(effect, ef.AgentRemoved):
            self.current.pop(effect.agent, None)
            self._book.append(lambda: self._forget_agent(effect.agent))

    def _arrive(self) -> None:
        for writes in (self._log, self._book):
            while len(writes) > LAG:
                writes.popleft()()

    def _serves(self, agent: str, version: int, settings: Settings) -> None:
        self.current[agent] = version
        self.settings[agent, version] = settings

    def _started(self, effect: ef.Dispatch) -> None:
        row = self.rows.get(effect.run)
        if row is not None:
            self.rows[effect.run] = replace(row, context=effect.context, worker=effect.worker)

    def _ended(self, effect: ef.Resolve) -> None:
        self.rows.pop(effect.run, None)
        self.ended.add(effect.run)
        self.acknowledged.append(effect.run)

    def _begun(self, effect: ef.Dispatch, now: float) -> None:
        self.notes[self._asked[effect.run], effect.session or ""] = Note(effect.turn - 1, now, effect.worker)

    def _seen(self, effect: ef.Resolve, now: float) -> None:
        key = (effect.agent, effect.session or "")
        before = self.notes.get(key)
        self.notes[key] = Note(effect.turn, now, before.home if before is not None else None)

    def _forget(self, effect: ef.EndSession) -> None:
        self.notes.pop((effect.agent, effect.session), None)

    def _forget_agent(self, agent: str) -> None:
        for key in [key for key in self.notes if key[0] == agent]:
            del self.notes[key]
        for run in [run for run, row in self.rows.items() if row.agent == agent]:
            del self.rows[run]
