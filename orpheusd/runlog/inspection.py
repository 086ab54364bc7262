"""Whether a log is whole: nothing missing, nothing changed, nothing added. It reads and never writes.

Cheap questions are always asked: is it the log of its mark, has it come as far, does the chain hold, are its tables
ours, are the runs that have not ended intact. The whole content is read as far as a time budget goes.
"""

# ruff: noqa: S608 - the pieces are constants; values are bound

import sqlite3
import struct
import time
from pathlib import Path
from typing import NamedTuple

from orpheusd.runlog.chain import Head, checksum, genesis, read_ring
from orpheusd.runlog.compose import Row, detail_of
from orpheusd.runlog.mark import Record
from orpheusd.runlog.place import wal_of
from orpheusd.runlog.rows import RunDetail
from orpheusd.runlog.schema import VERSION, connect_reader, definitions, expected_definitions, selected

#: What SQLite says about content, as opposed to the disk: corrupt, not a database, a wrong schema, a wrong format.
CONTENT_ERRORS = (
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE,
)  # fmt: skip
#: How fast a cold disk is believed to be; the structural check cannot be interrupted, so its size is bounded.
READ_BYTES_PER_S = 100 * 1024 * 1024
_LOOK_AT_CLOCK_ROWS = 128

class Inspection(NamedTuple):
    """`problem` is "" for a log that may be continued. `whole`: all of the content was looked at.

    `version` is that of its tables; `unfinished` are the runs without an end, in order and without payloads.
    """

    problem: str
    whole: bool = False
    head: Head | None = None
    version: int = VERSION
    unfinished: tuple[RunDetail, ...] = ()


class Damaged(Exception):
    """Says what is not as it was written."""


def inspect(path: Path, record: Record, budget_s: float | None) -> Inspection:
    """Look at the log at `path` against its mark. `budget_s` None reads everything.

    Raises sqlite3.Error or OSError when the disk cannot be read, which says nothing about the log.
    """
    try:
        connection = connect_reader(path)
        try:
            return _inspect(connection, path, record, budget_s)
        finally:
            connection.close()
    except Damaged as damage:
        return Inspection(str(damage))
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in CONTENT_ERRORS:
            raise
        return Inspection(f"SQLite: {error}")
    except UnicodeDecodeError as error:
        # Its words for a damaged schema quote it.
        return Inspection(f"SQLite: names that are no text ({error.reason})")


def _inspect(connection: sqlite3.Connection, path: Path, record: Record, budget_s: float | None) -> Inspection:
    began = time.monotonic()
    connection.execute("BEGIN")
    version = _check_tables(connection, record)
    head = _check_chain(connection, record)
    select = f"SELECT {selected(version)} FROM runs"
    unfinished: list[RunDetail] = []
    for row in connection.execute(
            f"{select} WHERE state <> 'completed' AND state IN ('queued', 'started') ORDER BY seq"):
        _check_row(row)
        unfinished.append(detail_of(row)._replace(input=None, result=None))
    whole = _check_rows(connection, select, head, None if budget_s is None else began + budget_s)
    if whole:
        whole = _check_structure(connection, path, budget_s)
    return Inspection("", whole, head, version, tuple(unfinished))


def _check_tables(connection: sqlite3.Connection, record: Record) -> int:
    """The version of the tables."""
    found = definitions(connection)
    version = next((known for known in range(VERSION, 0, -1) if found == expected_definitions(known)), 0)
    if not version:
        raise Damaged("its tables are not those of a run log")
    rows = connection.execute("SELECT schema_version, log_id FROM log").fetchall()
    if len(rows) != 1 or rows[0][0] != version:
        raise Damaged(f"it does not say that its format is {version}")
    if rows[0][1] != record.log_id:
        raise Damaged("it is another log than the one its high-water mark belongs to")
    return version


def _check_chain(connection: sqlite3.Connection, record: Record) -> Head:
    try:
        digests, head = read_ring(connection.execute("SELECT * FROM chain").fetchall())
    except ValueError as error:
        raise Damaged(str(error)) from error
    except (TypeError, OverflowError, struct.error) as error:
        raise Damaged("the chain of commits is garbled") from error
    if head.commit_no < record.commit_no:
        cut = record.next_seq - head.next_seq
        raise Damaged(
            f"it was cut: it ends at commit {head.commit_no}, and its high-water mark is {record.commit_no}"
            + (f" ({cut} runs are missing)" if cut > 0 else ""))
    if digests.get(record.commit_no) != record.digest:
        raise Damaged(f"its commit {record.commit_no} is not the one its high-water mark was set at")
    if digests.get(0, genesis(record.log_id).digest) != genesis(record.log_id).digest:
        raise Damaged("its chain of commits does not begin with this log")
    return head


def _check_rows(connection: sqlite3.Connection, select: str, head: Head, deadline: float | None) -> bool:
    """Newest first. Whether all were read before the deadline."""
    count = total = 0
    rows = connection.execute(f"{select} ORDER BY seq DESC")
    for row in rows:
        _check_row(row)
        if row[0] >= head.next_seq:
            raise Damaged(f"run {row[1]} has number {row[0]}, and the log has not come so far")
        count += 1
        total += row[-1]
        if count % _LOOK_AT_CLOCK_ROWS == 0 and deadline is not None and time.monotonic() > deadline:
            rows.close()
            return False
    if count != head.row_count:
        raise Damaged(f"it holds {count} runs where its last commit left {head.row_count}")
    if total != head.total:
        raise Damaged("its runs are not those that its last commit left")
    return True


def _check_row(row: Row) -> None:
    try:
        intact = checksum(row[:-1]) == row[-1]
    except (TypeError, ValueError):
        intact = False
    if not intact:
        raise Damaged(f"run number {row[0]} is not as it was written")


def _check_structure(connection: sqlite3.Connection, path: Path, budget_s: float | None) -> bool:
    wal = wal_of(path)
    size = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    if budget_s is not None and size > budget_s * READ_BYTES_PER_S:
        return False
    ((answer,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if answer != "ok":
        raise Damaged(f"SQLite: {answer}")
    return True
