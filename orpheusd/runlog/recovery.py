"""Opening a log: continue it when it can be proved whole, else put it aside and begin a new one, saying so.

A log that cannot be proved whole is never continued, and never deleted by what it finds: its files are renamed.
"""

import os
import re
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from orpheusd.errors import OrpheusError
from orpheusd.runlog import mark as marks
from orpheusd.runlog import place
from orpheusd.runlog.chain import genesis
from orpheusd.runlog.inspection import Inspection, inspect
from orpheusd.runlog.mark import Mark, Reading
from orpheusd.runlog.reserve import disk_is_full
from orpheusd.runlog.rows import RunDetail
from orpheusd.runlog.schema import OLDEST_SQLITE, VERSION, connect_reader, connect_writer, create, migrate
from orpheusd.runlog.settings import Settings
from orpheusd.runlog.store import Store

#: Damaged logs that are kept; when there is one more, the oldest goes.
KEPT_DAMAGED = 8

LOG_ID_BYTES = 16


class Damage(NamedTuple):
    """What was wrong with a log that was put aside, and under which name it is kept."""

    reason: str
    found_at: float
    kept_as: str


class Recovered(NamedTuple):
    """An open log. `whole` is False when its size did not allow to look at all of it. `note` is for `status`."""

    store: Store
    unfinished: tuple[RunDetail, ...]
    damage: Damage | None
    whole: bool
    note: str


def recover(path: Path, settings: Settings) -> Recovered:
    """Raises OrpheusError when the log cannot be kept there, or the disk cannot be read."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise OrpheusError("internal", f"SQLite {sqlite3.sqlite_version} is too old; the run log needs {oldest}")
    place.check(path)
    try:
        return _recover(path, settings)
    except sqlite3.Error as error:
        why = f"the disk is full ({error}); make space and start again" if disk_is_full(error) else error
        raise OrpheusError("internal", f"cannot open the run log {path}: {why}") from error
    except OSError as error:
        raise OrpheusError("internal", f"cannot open the run log {path}: {error}") from error


def damaged_copies(path: Path) -> list[str]:
    """The names of logs that were put aside, oldest first."""
    pattern = re.compile(re.escape(path.name) + r"\.damaged-[0-9TZ]+(\.[0-9]+)?")
    names = {match[0] for file in path.parent.iterdir() if (match := pattern.match(file.name))}
    return sorted(names, key=_age)


def _age(name: str) -> tuple[str, int]:
    stamp, _, number = name.rpartition(".damaged-")[2].partition(".")
    return stamp, int(number or 0)


def _recover(path: Path, settings: Settings) -> Recovered:
    try:
        reading = marks.read(place.mark_of(path))
    except FileNotFoundError:
        reading = None
    if _never_made(path, reading):
        return _begin(path, None)
    inspection = _judge(path, reading, settings.check_budget_s)
    if inspection.problem or inspection.head is None or reading is None or reading.record is None:
        damage = Damage(inspection.problem, time.time(), _put_aside(path))
        return _begin(path, damage)
    if inspection.version < VERSION:
        _update(path, inspection.version)
    mark = Mark(place.mark_of(path), reading.record.log_id)
    try:
        mark.rewrite(inspection.head)
        store = Store(path, mark, inspection.head)
    except BaseException:
        mark.close()
        raise
    note = "one slot of the high-water mark was unreadable and has been written anew" if reading.spoiled else ""
    return Recovered(store, inspection.unfinished, None, inspection.whole, note)


def _never_made(path: Path, reading: Reading | None) -> bool:
    """Whether there is no log yet: nothing at all, or one whose making was interrupted."""
    there = path.exists() or place.wal_of(path).exists()
    if reading is None:
        return not there
    if reading.record is None or reading.record.commit_no > 0 or reading.record.condemned:
        return False
    if not path.exists() or path.stat().st_size == 0:
        return True
    try:
        connection = connect_reader(path)
        try:
            return not connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False


def _judge(path: Path, reading: Reading | None, budget_s: float) -> Inspection:
    if reading is None:
        return Inspection("its high-water mark is missing")
    if reading.record is None:
        return Inspection("its high-water mark is unreadable")
    if reading.record.condemned:
        return Inspection("damage was found while it was in use")
    if not path.exists():
        return Inspection("the database is missing")
    return inspect(path, reading.record, budget_s)


def _update(path: Path, version: int) -> None:
    """Give a log that was proved whole the tables of this version. It is the one before or the new one, never half."""
    connection = connect_writer(path)
    try:
        migrate(connection, version)
    finally:
        connection.close()


def _begin(path: Path, damage: Damage | None) -> Recovered:
    """A new log. The mark comes first: a database without one is never mistaken for a new log."""
    for leftover in (path, place.wal_of(path), place.shm_of(path), place.reserve_of(path)):
        leftover.unlink(missing_ok=True)
    log_id = os.urandom(LOG_ID_BYTES)
    first = genesis(log_id)
    mark = Mark.create(place.mark_of(path), log_id)
    try:
        place.sync_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = connect_writer(path)
        try:
            create(connection, log_id, first.digest)
        finally:
            connection.close()
        place.sync_folder(path.parent)
        store = Store(path, mark, first)
    except BaseException:
        mark.close()
        raise
    return Recovered(store, (), damage, True, "")


def _put_aside(path: Path) -> str:
    """Rename the files of a damaged log, so that SQLite still finds its WAL beside it. Returns the new name."""
    kept = path.with_name(f"{path.name}.damaged-{_next_stamp(damaged_copies(path))}")
    for of in (place.mark_of, place.wal_of):
        if of(path).exists():
            of(path).rename(of(kept))
    if path.exists():
        path.rename(kept)
    place.shm_of(path).unlink(missing_ok=True)
    for name in damaged_copies(path)[:-KEPT_DAMAGED]:
        for file in _files_of(path.with_name(name)):
            file.unlink(missing_ok=True)
    place.sync_folder(path.parent)
    return kept.name


def _next_stamp(copies: list[str]) -> str:
    """One that sorts after those of all copies, so that the newest is never taken for the oldest and deleted."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    newest, number = _age(copies[-1]) if copies else ("", 0)
    return stamp if stamp > newest else f"{newest}.{number + 1}"


def _files_of(path: Path) -> tuple[Path, ...]:
    return path, place.wal_of(path), place.shm_of(path), place.mark_of(path)
