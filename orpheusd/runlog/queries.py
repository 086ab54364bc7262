"""Questions to the run log, each over its own read-only connection: for an executor thread, never the event loop.

Every answer has a deadline and a limit. It knows nothing of the writer; it may run in another process. (In the same
one, SQLite keeps a descriptor for each connection that was ever open at the same time, and uses it again: closing it
would release the writer's locks.)
"""

# ruff: noqa: S608 - the pieces are constants; values are bound

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from orpheusd.errors import OrpheusError
from orpheusd.operations import ROWS_LIMIT
from orpheusd.runlog.compose import LISTED, detail_of, run_of
from orpheusd.runlog.rows import Run, RunDetail
from orpheusd.runlog.schema import COLUMNS, connect_reader

#: What one statement may bind, with room to spare.
IDS_AT_ONCE = 500
#: Inputs that one question fetches: at their largest (8 MiB) they are read within its deadline.
INPUTS_AT_ONCE = 50
#: How long a question may take: a log at its default size is read whole in less.
DEADLINE_S = 5.0
#: SQLite looks at the clock each time it has done this much: about a millisecond.
_STEPS_BETWEEN_LOOKS = 20_000


class RunQuery(NamedTuple):
    """Which runs to list, newest first. All filters must hold.

    At most ROWS_LIMIT rows, whatever `limit` is; `before_seq` gets the next page.
    `since` (included) and `until` (not included) are wall-clock seconds of `queued_at`; `before_seq` is the `seq` of
    the last row of the page before.
    """

    agent: str | None = None
    state: str | None = None
    session_id: str | None = None
    source: str | None = None
    since: float | None = None
    until: float | None = None
    before_seq: int | None = None
    limit: int = 100


class RunQueries:
    """Invariant: holds no connection between calls, so any thread may call it at any time."""

    def __init__(self, path: Path, deadline_s: float = DEADLINE_S) -> None:
        self._path = path
        self._deadline_s = deadline_s

    def find(self, query: RunQuery) -> list[Run]:
        """Raises OrpheusError: `timed-out` past the deadline, `internal` when the log cannot be read."""
        terms, values = _terms(query)
        where = f"WHERE {' AND '.join(terms)} " if terms else ""
        limit = max(0, min(query.limit, ROWS_LIMIT))
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {LISTED} FROM runs {where}ORDER BY seq DESC LIMIT ?", [*values, limit]).fetchall()
        return [run_of(row) for row in rows]

    def show(self, run_id: str) -> RunDetail | None:
        """One run with its payloads, or None when the log does not have it."""
        with self._reading() as connection:
            row = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM runs WHERE run_id = ?", (_text(run_id),)).fetchone()
        return None if row is None else detail_of(row)

    def asked(self, agent: str, idempotency_key: str, since: float) -> RunDetail | None:
        """The newest run that was executed under this key, accepted at `since` (wall-clock seconds) or later."""
        with self._reading() as connection:
            row = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM runs WHERE agent = ? AND idempotency_key = ?"
                " AND started_at IS NOT NULL AND queued_at >= ? ORDER BY seq DESC LIMIT 1",
                (_text(agent), _text(idempotency_key), int(since * 1_000_000))).fetchone()
        return None if row is None else detail_of(row)

    def inputs(self, run_ids: Sequence[str]) -> dict[str, bytes]:
        """The inputs of these runs, as far as the log has them."""
        found: dict[str, bytes] = {}
        for start in range(0, len(run_ids), INPUTS_AT_ONCE):
            ids = run_ids[start : start + INPUTS_AT_ONCE]
            places = ", ".join("?" * len(ids))
            with self._reading() as connection:
                found.update(connection.execute(
                    f"SELECT run_id, input FROM runs WHERE run_id IN ({places}) AND input IS NOT NULL", ids))
        return found

    def states(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The state of each of these runs that the log has."""
        found: dict[str, str] = {}
        with self._reading() as connection:
            for start in range(0, len(run_ids), IDS_AT_ONCE):
                ids = [_text(run_id) for run_id in run_ids[start : start + IDS_AT_ONCE]]
                places = ", ".join("?" * len(ids))
                found.update(connection.execute(
                    f"SELECT run_id, state FROM runs WHERE run_id IN ({places})", ids).fetchall())
        return found

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._deadline_s
        try:
            connection = connect_reader(self._path)
            try:
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise OrpheusError(
                    "timed-out", f"the run log could not answer within {self._deadline_s:g} s; narrow the question"
                    " by agent, session or time") from error
            raise OrpheusError("internal", f"cannot read the run log {self._path}: {error}") from error
        except UnicodeDecodeError as error:
            raise OrpheusError("internal", f"cannot read the run log {self._path}: it is damaged") from error


def _terms(query: RunQuery) -> tuple[list[str], list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    for name in ("agent", "session_id", "source"):
        value = getattr(query, name)
        if value is not None:
            terms.append(f"{name} = ?")
            values.append(_text(value))
    if query.state is not None:
        terms.append("state = ?")
        values.append(_text(query.state))
        if query.state != "completed":
            # Said aloud, so that SQLite may use the index that has only these.
            terms.append("state <> 'completed'")
    for term, moment in (("queued_at >= ?", query.since), ("queued_at < ?", query.until)):
        if moment is not None:
            terms.append(term)
            values.append(max(-(2**63), min(2**63 - 1, int(moment * 1_000_000))))
    if query.before_seq is not None:
        terms.append("seq < ?")
        values.append(max(-(2**63), min(2**63 - 1, query.before_seq)))
    return terms, values


def _text(value: str) -> str:
    """As the log stores it: lone surrogates are escaped there."""
    return value.encode(errors="backslashreplace").decode()
