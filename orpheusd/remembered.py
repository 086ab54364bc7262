"""What is remembered of sessions when the daemon is not there: that they were seen, how many runs they finished, and
which worker they live on.

So a session that comes back after a restart is told that its memory was lost or restored, never that it is new.
Changes are gathered by session and written by one thread; it decides nothing and knows no worker.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from orpheusd.core.events import Seen

log = logging.getLogger(__name__)

#: How long the end of a run waits for others. A kill of the daemon forgets at most the turns of so long a time.
LINGER_S = 0.02

_TABLE = """
CREATE TABLE IF NOT EXISTS sessions (
  agent TEXT NOT NULL,
  id TEXT NOT NULL,
  turns INTEGER NOT NULL,
  last_used REAL NOT NULL,
  home TEXT,
  PRIMARY KEY (agent, id)
) STRICT, WITHOUT ROWID
"""
_SEEN = """
INSERT INTO sessions VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET turns = excluded.turns, last_used = excluded.last_used, home = coalesce(excluded.home, home)
"""


class Change(NamedTuple):
    """What became of a session at a moment: `turns` runs are finished, or None: it has ended. `home` is the worker
    that it lives on since then, None where that has not changed."""

    turns: int | None
    at: float
    home: str | None = None


class Remembered:
    """Invariant: `_changes` has at most one change for each session, the latest.

    `forget_state(agent, id, before)` deletes what the session saved before that moment; it is called in the thread.
    """

    def __init__(self, path: Path, forget_state: Callable[[str, str, float], None]) -> None:
        self._changes: dict[tuple[str, str], Change] = {}
        self._forget_state = forget_state
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._connection = self._thread.submit(_open, path).result()

    def begun(self, agent: str, session_id: str, turns: int, home: str) -> None:
        """The session has a home from now on. Written at once."""
        self._changes[agent, session_id] = Change(turns, time.time(), home)
        self._flush()

    def seen(self, agent: str, session_id: str, turns: int) -> None:
        """A run of the session is over."""
        before = self._changes.get((agent, session_id))
        self._changes[agent, session_id] = Change(turns, time.time(), before.home if before is not None else None)
        self._arm()

    def ended(self, agent: str, session_id: str) -> None:
        self._changes[agent, session_id] = Change(None, time.time())
        self._arm()

    def load(self, agent: str, ttl_s: float, most: int) -> list[Seen]:
        """The sessions that have not expired, least recently used first. For the start: it waits."""
        return self._thread.submit(self._load, agent, ttl_s, most).result()

    def forget_agent(self, agent: str) -> None:
        for key in [key for key in self._changes if key[0] == agent]:
            del self._changes[key]
        self._thread.submit(self._delete, agent)

    def close(self, timeout_s: float) -> None:
        """Write down what is left, as far as the disk takes it within `timeout_s`."""
        self._flush()
        if wait([self._thread.submit(self._connection.close)], timeout_s).not_done:
            log.error("what is known of sessions could not be written to its end within %g s", timeout_s)
        self._thread.shutdown(wait=False)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._changes:
            changes, self._changes = self._changes, {}
            self._thread.submit(self._write, changes)

    def _write(self, changes: dict[tuple[str, str], Change]) -> None:
        seen = [(*key, *change) for key, change in changes.items() if change.turns is not None]
        over = {key: change.at for key, change in changes.items() if change.turns is None}
        try:
            with self._connection:
                self._connection.executemany("DELETE FROM sessions WHERE agent = ? AND id = ?", list(over))
                self._connection.executemany(_SEEN, seen)
        except sqlite3.Error as error:
            # a full disk costs the knowledge that sessions were there, never a run
            log.error("%d changes of sessions cannot be written down: %s", len(changes), error)
        for (agent, id), at in over.items():
            try:
                self._forget_state(agent, id, at)
            except OSError as error:
                log.warning("the saved state of a session of %s cannot be deleted: %s", agent, error)

    def _load(self, agent: str, ttl_s: float, most: int) -> list[Seen]:
        now = time.time()
        with self._connection:
            self._connection.execute("DELETE FROM sessions WHERE agent = ? AND last_used <= ?", (agent, now - ttl_s))
        rows = self._connection.execute(
            "SELECT id, turns, last_used, home FROM sessions WHERE agent = ? ORDER BY last_used DESC LIMIT ?",
            (agent, most)).fetchall()
        return [Seen(id, turns, max(0.0, now - last_used), home) for id, turns, last_used, home in reversed(rows)]

    def _delete(self, agent: str) -> None:
        try:
            with self._connection:
                self._connection.execute("DELETE FROM sessions WHERE agent = ?", (agent,))
        except sqlite3.Error as error:
            log.error("the sessions of %s cannot be forgotten: %s", agent, error)


def _open(path: Path) -> sqlite3.Connection:
    """The database; one that cannot be read is put aside, because knowing less must not keep the daemon down."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        log.error("%s cannot be read (%s) and is now %s; earlier sessions are not known any more", path, error, aside)
        path.rename(aside)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        if "home" not in {column for _, column, *_ in connection.execute("PRAGMA table_info(sessions)")}:
            connection.execute("ALTER TABLE sessions ADD COLUMN home TEXT")
    except BaseException:
        connection.close()
        raise
    return connection
