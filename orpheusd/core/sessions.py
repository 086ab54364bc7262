"""Sessions and their homes: the affinity map of one agent.

A session is known from the moment its first run is handed to a worker; that worker is its home. The home
lasts as long as the process: when the kernel has proved it dead the session is homeless, and lives on so
that its next answer can say that memory was lost. The map is bounded by `max`, forgets by least recent use,
and does constant work a run however many sessions it holds.
"""

from collections import OrderedDict
from collections.abc import Container, ItemsView, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from orpheusd.core.worker import Worker

if TYPE_CHECKING:
    from orpheusd.core.events import Seen

#: Sessions that are ended in one turn of the core at most, so that a million of one age do not stop everything else.
BATCH = 1000


class Session:
    """Invariant: `home`, while alive, holds this session's memory, and no other worker does.

    `turns` counts the runs it has finished, `running` those on a worker now. `saved` tells that it has state in the
    workspace, so that its home costs less to lose.
    """

    __slots__ = ("home", "last_used", "running", "saved", "turns")

    def __init__(self, now: float) -> None:
        self.home: Worker | None = None
        self.turns = 0
        self.running = 0
        self.saved = False
        self.last_used = now

    @property
    def live_home(self) -> Worker | None:
        home = self.home
        return home if home is not None and home.alive else None

    @property
    def unheard(self) -> bool:
        """Whether its home outlived an earlier daemon, and what is in it is not known yet."""
        return self.home is not None and self.home.unheard


class SessionMap:
    """All sessions of an agent, least recently used first.

    Invariant: `homeless` is the number of sessions without a live home; a worker's `sessions` the number
    whose home it is, its `saved` how many of these have saved state.
    """

    __slots__ = ("_by_id", "homeless")

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Session] = OrderedDict()
        self.homeless = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, id: str) -> Session | None:
        return self._by_id.get(id)

    def start(self, id: str, worker: Worker, now: float) -> tuple[Session, str]:
        """A run of the session starts on `worker`. Returns the session and the run's context."""
        session = self._by_id.get(id)
        if session is None:
            session = self._by_id[id] = Session(now)
            session.home = worker
            worker.sessions += 1
            context = "new"
        else:
            home = session.home
            if home is worker:
                context = "warm"
            elif home is not None and home.alive:
                context = "spilled"
            else:
                self._rehome(session, worker)
                context = "lost"
            self._by_id.move_to_end(id)
        session.running += 1
        session.last_used = now
        return session, context

    def finish(self, id: str, session: Session, now: float) -> None:
        """A run of the session is over. The session itself may have been ended since the run started."""
        session.running -= 1
        session.turns += 1
        session.last_used = now
        if self._by_id.get(id) is session:
            self._by_id.move_to_end(id)

    def mark_saved(self, id: str, session: Session) -> None:
        """The session has state in the workspace."""
        home = session.live_home
        if not session.saved and home is not None and self._by_id.get(id) is session:
            home.saved += 1
        session.saved = True

    def take_back(self, id: str, session: Session) -> Worker | None:
        """A run that `start` was told of has provably not started. Returns what `end` does, if the session ends."""
        session.running -= 1
        if not session.turns and not session.running and self._by_id.get(id) is session:
            return self.end(id)
        return None

    def touch(self, id: str, now: float) -> None:
        """Runs of the session have waited until now, and so it was in use."""
        session = self._by_id.get(id)
        if session is not None:
            session.last_used = now
            self._by_id.move_to_end(id)

    def home_died(self, worker: Worker) -> None:
        """`worker` has exited: its sessions are homeless from now on. Constant work: they find out by themselves."""
        self.homeless += worker.sessions
        worker.sessions = worker.saved = 0

    def remember(self, id: str, turns: int, last_used: float) -> None:
        """A session of an earlier life of the daemon: its home is gone."""
        session = self._by_id[id] = Session(last_used)
        session.turns = turns
        self.homeless += 1

    def resume(self, id: str, now: float) -> Session:
        """A run of an earlier life of the daemon is going on; where the session lives may come to be known later."""
        session = self._by_id.get(id)
        if session is None:
            self.remember(id, 0, now)
            session = self._by_id[id]
        session.running += 1
        return session

    def claim(self, id: str, worker: Worker) -> Session | None:
        """The session lives on `worker`, unless it is known to live elsewhere."""
        session = self._by_id.get(id)
        if session is not None and session.live_home is None:
            self._rehome(session, worker)
        return session

    def settle(self, seen: "Seen", worker: Worker, over: int, now: float) -> None:
        """`worker` says that the session lives there. Of the turns it has finished, the ends of `over` follow."""
        used_at = now - seen.idle_s
        if seen.id not in self._by_id:
            self.remember(seen.id, seen.turns, used_at)
        session = self.claim(seen.id, worker)
        if session is not None and session.home is worker:
            session.turns = max(0, max(session.turns, seen.turns) - over)
            session.last_used = max(session.last_used, used_at)
            if seen.saved:
                self.mark_saved(seen.id, session)

    def sort(self) -> None:
        """Put them in order of use again, after `settle` or `resume`."""
        self._by_id = OrderedDict(sorted(self._by_id.items(), key=lambda item: item[1].last_used))

    def end(self, id: str) -> Worker | None:
        """Forget the session. Returns its home when that lives and should hear of it."""
        session = self._by_id.pop(id, None)
        if session is None:
            return None
        home = session.live_home
        if home is None:
            self.homeless -= 1
        else:
            home.sessions -= 1
            home.saved -= session.saved
        return home

    def surplus(self, most: int, waiting: Container[str]) -> list[str]:
        """The sessions to evict when there are more than `most`: the least recently used that are not in use, at
        most a batch of them."""
        excess = min(len(self._by_id) - most, BATCH)
        return [id for id, _ in islice(self._unused(waiting), max(0, excess))]

    def expired(self, ttl_s: float, now: float, waiting: Container[str]) -> list[str]:
        """The sessions that have not been used for `ttl_s`, at most a batch of them."""
        ids: list[str] = []
        for id, session in self._unused(waiting):
            if session.last_used + ttl_s > now or len(ids) == BATCH:
                break
            ids.append(id)
        return ids

    def next_expiry(self, ttl_s: float, now: float, waiting: Container[str]) -> float | None:
        """When a session may have been idle for `ttl_s`, at the earliest. None when there are no sessions."""
        for _, session in self._unused(waiting):
            return session.last_used + ttl_s
        return now + ttl_s if self._by_id else None

    def newest(self, limit: int) -> list[tuple[str, Session]]:
        """The `limit` most recently used sessions, latest first."""
        chosen: list[tuple[str, Session]] = []
        for id in reversed(self._by_id):
            if len(chosen) == limit:
                break
            chosen.append((id, self._by_id[id]))
        return chosen

    def items(self) -> ItemsView[str, Session]:
        return self._by_id.items()

    def _unused(self, waiting: Container[str]) -> Iterator[tuple[str, Session]]:
        """Least recently used first; a session with a run, started or waiting, is in use. One whose home has not been
        heard may be, and it could not be told."""
        return ((id, session) for id, session in self._by_id.items()
                if not session.running and id not in waiting and not session.unheard)

    def _rehome(self, session: Session, worker: Worker) -> None:
        session.home = worker
        worker.sessions += 1
        worker.saved += session.saved
        self.homeless -= 1

