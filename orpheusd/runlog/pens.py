"""Two ways of putting rows into the database: many at once, on trust, or one at a time, trusting nothing."""

# ruff: noqa: S608 - the pieces are constants; values are bound

import sqlite3
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from orpheusd.runlog.batch import Story
from orpheusd.runlog.compose import Row, cleaned, fresh, moved, sealed
from orpheusd.runlog.schema import COLUMNS, FIXED, UNFINISHED

#: Rows a statement carries. One statement is one release of the interpreter's lock, and each release may cost the
#: writer a wait for the event loop; the sizes are few because each is prepared once and kept.
CHUNKS = (64, 16, 4, 1)

#: What a row can be refused for; everything else that SQLite raises is about the disk, not the row.
ROW_ERRORS = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError,
    ValueError, TypeError, AttributeError,
)  # fmt: skip

_SEQ, _RUN_ID, _STATE = COLUMNS.index("seq"), COLUMNS.index("run_id"), COLUMNS.index("state")
#: What an update carries: the columns that may change.
_CHANGED = tuple(name for name in COLUMNS if name not in FIXED)
_INSERT = f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES "


class Pen:
    """Puts row tuples into the database, in its own rhythm."""

    hasty = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def known(self, stories: dict[str, Story]) -> dict[str, Row]:
        """The rows that the log already has of these runs."""
        raise NotImplementedError

    def write(self, before: Row | None, seq: int, story: Story) -> Row | None:
        """Write the story into a new row, or into `before`. None when there is nothing to write it into."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is still held back."""

    def _read(self, run_ids: Sequence[str]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        sql = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE run_id IN "
        for chunk in _chunks(run_ids):
            rows = self._connection.execute(sql + _places(len(chunk)), chunk).fetchall()
            found.update((row[_RUN_ID], row) for row in rows)
        return found


class FastPen(Pen):
    """Believes that a run with a `queued` is new, and writes many rows at once. An error means it was wrong."""

    hasty = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._inserts: list[Row] = []
        self._updates: list[Row] = []

    def known(self, stories: dict[str, Story]) -> dict[str, Row]:
        return self._read([run_id for run_id, story in stories.items() if story.queued is None])

    def write(self, before: Row | None, seq: int, story: Story) -> Row | None:
        if before is None:
            if story.queued is None:
                return None
            row = sealed(fresh(seq, story))
            self._inserts.append(row)
            return row
        if has_ended(before):
            return None
        row = sealed(moved(before, story))
        self._updates.append(row)
        return row

    def finish(self) -> None:
        for rows in _chunks(self._inserts):
            places = ", ".join([_places(len(COLUMNS))] * len(rows))
            self._connection.execute(_INSERT + places, _flat(rows))
        for rows in _chunks([_update(row) for row in self._updates]):
            places = ", ".join([_places(1 + len(_CHANGED))] * len(rows))
            sets = ", ".join(f"{name} = v.column{number}" for number, name in enumerate(_CHANGED, 2))
            self._connection.execute(
                f"UPDATE runs SET {sets} FROM (VALUES {places}) AS v WHERE runs.seq = v.column1", _flat(rows))


class CarefulPen(Pen):
    """Writes row by row, what SQLite cannot hold made harmless. A row that still fails is refused alone."""

    def known(self, stories: dict[str, Story]) -> dict[str, Row]:
        return {run_id: row for run_id in stories for row in self._read([_bindable(run_id)]).values()}

    def write(self, before: Row | None, seq: int, story: Story) -> Row | None:
        if before is None:
            if story.queued is None:
                return None
            row = sealed(cleaned(fresh(seq, story)))
            self._connection.execute(_INSERT + _places(len(COLUMNS)), row)
            return row
        row = sealed(cleaned(moved(before, story)))
        sets = ", ".join(f"{name} = ?" for name in _CHANGED)
        seq, *values = _update(row)
        self._connection.execute(f"UPDATE runs SET {sets} WHERE seq = ?", [*values, seq])
        return row


#: What an update binds, of a row: its number, and the columns that may change.
_update = itemgetter(_SEQ, *(COLUMNS.index(name) for name in _CHANGED))


def has_ended(row: Row) -> bool:
    return row[_STATE] not in UNFINISHED


def _chunks(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    at = 0
    for size in CHUNKS:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def _places(count: int) -> str:
    return f"({', '.join('?' * count)})"


def _flat(rows: Sequence[Row]) -> list[Any]:
    return [value for row in rows for value in row]


def _bindable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
