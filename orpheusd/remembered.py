"""What is remembered of sessions when the daemon is not there: that they were seen, how many runs they finished, and
which worker they live on.

So a session that comes back after a restart is told that its memory was lost or restored, never that it is new.
Changes are gathered by session and written by one thread; it decides nothing and knows no worker. What a full disk
does not take is kept and written later; a file that is damaged is put aside.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orpheusd.core.events import Seen
from orpheusd.errors import OrpheusError
from orpheusd.runlog.inspection import CONTENT_ERRORS

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long the end of a run waits for others. A kill of the daemon forgets at most the turns of so long a time.
LINGER_S = 0.02
#: How soon a disk that took nothing is tried again.
RETRY_S = 1.0
#: How long somebody waits for it who wants to know.
WRITTEN_S = 5.0

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
    """Invariant: `_changes`, and the thread's `_unwritten`, have at most one change for each session, the latest.

    `forget_state(agent, id, before)` deletes what the session saved before that moment; it is called in the thread.
    """

    def __init__(self, path: Path, forget_state: Callable[[str, str, float], None]) -> None:
        self._changes: dict[tuple[str, str], Change] = {}
        self._forget_state = forget_state
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._unwritten: dict[tuple[str, str], Change] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        try:
            self._connection = self._thread.submit(_open, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

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

    async def written(self) -> bool:
        """Whether the disk has what became of sessions until now; False when it did not take that in WRITTEN_S."""
        self._flush()
        done = asyncio.wrap_future(self._thread.submit(lambda: not self._unwritten))
        await asyncio.wait([done], timeout=WRITTEN_S)
        return done.done() and done.result()

    def load(self, agent: str, ttl_s: float, most: int) -> list[Seen]:
        """The sessions that have not expired, least recently used first. For the start: it waits."""
        return self._thread.submit(self._load, agent, ttl_s, most).result()

    def forget_agent(self, agent: str) -> None:
        for key in [key for key in self._changes if key[0] == agent]:
            del self._changes[key]
        self._thread.submit(self._delete, agent)

    def close(self, timeout_s: float) -> None:
        """Write down what is left, as far as the disk takes it within `timeout_s`."""
        self._closed = True
        self._flush()
        if wait([self._thread.submit(self._leave)], timeout_s).not_done:
            log.error("what is known of sessions could not be written to its end within %g s", timeout_s)
        self._thread.shutdown(wait=False)

    def _leave(self) -> None:
        self._connection.close()

    def _arm(self, delay_s: float = LINGER_S) -> None:
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(delay_s, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._changes or self._unwritten:
            changes, self._changes = self._changes, {}
            self._thread.submit(self._write, changes)

    def _write(self, new_changes: dict[tuple[str, str], Change]) -> None:
        retried = bool(self._unwritten)
        for key, change in new_changes.items():
            before = self._unwritten.get(key)
            if change.home is None and change.turns is not None and before is not None:
                change = change._replace(home=before.home)
            self._unwritten[key] = change
        changes = self._unwritten
        seen: list[tuple[Any, ...]] = [(*key, *change) for key, change in changes.items() if change.turns is not None]
        over = {key: change.at for key, change in changes.items() if change.turns is None}
        try:
            self._mend(lambda: self._store(seen, list(over)))
        except sqlite3.Error as error:
            if not retried:
                log.error("changes of sessions cannot be written down now: %s; they are kept and tried again", error)
            self._loop.call_soon_threadsafe(self._arm, RETRY_S)
            return
        self._unwritten = {}
        for (agent, id), at in over.items():
            try:
                self._forget_state(agent, id, at)
            except OSError as error:
                log.warning("the saved state of a session of %s cannot be deleted: %s", agent, error)

    def _mend(self, step: Callable[[], T]) -> T:
        """Carry out the step, with a new file if the one there turns out to be damaged."""
        try:
            return step()
        except sqlite3.Error as error:
            if not _damaged(error):
                raise
            self._connection.close()
            _put_aside(self._path, error)
            self._connection = _connect(self._path)
            return step()

    def _store(self, seen: list[tuple[Any, ...]], over: list[tuple[str, str]]) -> None:
        with self._connection:
            self._connection.executemany(_SEEN, seen)
            self._connection.executemany("DELETE FROM sessions WHERE agent = ? AND id = ?", over)

    def _load(self, agent: str, ttl_s: float, most: int) -> list[Seen]:
        return self._mend(lambda: self._read(agent, ttl_s, most))

    def _read(self, agent: str, ttl_s: float, most: int) -> list[Seen]:
        now = time.time()
        with self._connection:
            self._connection.execute("DELETE FROM sessions WHERE agent = ? AND last_used <= ?", (agent, now - ttl_s))
        rows = self._connection.execute(
            "SELECT id, turns, last_used, home FROM sessions WHERE agent = ? ORDER BY last_used DESC LIMIT ?",
            (agent, most)).fetchall()
        return [Seen(id, turns, max(0.0, now - last_used), home) for id, turns, last_used, home in reversed(rows)]

    def _delete(self, agent: str) -> None:
        for key in [key for key in self._unwritten if key[0] == agent]:
            del self._unwritten[key]
        try:
            self._mend(lambda: self._erase(agent))
        except sqlite3.Error as error:
            log.error("the sessions of %s cannot be forgotten: %s", agent, error)

    def _erase(self, agent: str) -> None:
        with self._connection:
            self._connection.execute("DELETE FROM sessions WHERE agent = ?", (agent,))


def _open(path: Path) -> sqlite3.Connection:
    """The database; one that is damaged is put aside, because knowing less must not keep the daemon down.

    Raises OrpheusError when it is the disk that fails: what is sound must not be given up for that.
    """
    try:
        try:
            return _connect(path)
        except sqlite3.Error as error:
            if not _damaged(error):
                raise
            _put_aside(path, error)
            return _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise OrpheusError("internal", f"cannot open {path}, where sessions are remembered: {error}") from error


def _damaged(error: sqlite3.Error) -> bool:
    """Whether SQLite complains of what is in the file, and not of the disk or of somebody's lock."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in CONTENT_ERRORS


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    """Rename the file, with its WAL beside it. The latest damaged one is kept, and no more."""
    for earlier in path.parent.glob(f"{path.name}.damaged-*"):
        earlier.unlink()
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    log.error("%s cannot be read (%s) and is now %s; earlier sessions are not known any more", path, error, aside)
    for suffix in ("-wal", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


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
