"""A log that the first version of the tables wrote: proved whole as it is, brought up to date, and still provable."""

import sqlite3
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orpheusd.runlog import place, schema
from orpheusd.runlog.chain import Head, follow, genesis
from orpheusd.runlog.mark import Mark
from orpheusd.runlog.verify import verify
from tests.runlog_kit import THOROUGH, Log, ended, queued, started

#: The runs of the old log ended in 1970: at any other age limit the writer deletes them as soon as its thread runs.
AGELESS = replace(THOROUGH, max_age_s=0)

LOG_ID = b"a log of old....."[:16]
#: The statements that made the tables then, kept as they were.
TABLES = (Path(__file__).parent / "runlog_v1.sql").read_text()

ENDED = (1, "r-ended", "a", "s", "http", "uid 0", 0, None, 1_000, 3, 3, "w-1", "warm", 2, 2_000,
         "completed", "", 3_000, 1_000, 2, None, None, None, None, b"123", b"{}")
WAITING = (2, "r-waiting", "a", None, "ctl", "uid 0", 1, '{"timeout_s":3}', 4_000, 3, None, None, None, None, None,
           "queued", None, None, None, 0, None, None, None, None, b"456", None)


def sum_of_version_1(row: tuple[Any, ...]) -> int:
    crc = zlib.crc32(("%s\x1f" * 24 % row[:-2]).encode())
    return zlib.crc32(row[-1] or b"", zlib.crc32(row[-2] or b"", crc))


def written_by_version_1(folder: Path) -> Path:
    """A log of two runs, as the daemon of then left it."""
    path = folder / "runs.db"
    connection = schema.connect_writer(path)
    connection.executescript(TABLES)
    connection.execute("INSERT INTO log VALUES (1, 1, ?)", (LOG_ID,))
    connection.executemany("INSERT INTO chain VALUES (?, ?, 0, 0, 1, ?)", [
        (slot, slot - schema.RING if slot else 0, b"" if slot else genesis(LOG_ID).digest)
        for slot in range(schema.RING)])
    head = genesis(LOG_ID)
    for row in (ENDED, WAITING):
        connection.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 27)})", (*row, sum_of_version_1(row)))
        head = follow(head, 1, sum_of_version_1(row), row[0] + 1)
        set_link(connection, head)
    connection.close()
    mark = Mark(place.mark_of(path), LOG_ID)
    mark.rewrite(head)
    mark.close()
    return path


def set_link(connection: sqlite3.Connection, head: Head) -> None:
    connection.execute("UPDATE chain SET commit_no = ?, row_count = ?, total = ?, next_seq = ?, digest = ?"
                       " WHERE slot = ?", (*head, head.commit_no))


def version_of(path: Path) -> int:
    connection = schema.connect_reader(path)
    try:
        version: int = connection.execute("SELECT schema_version FROM log").fetchone()[0]
        return version
    finally:
        connection.close()


def test_a_log_of_version_1_is_continued(tmp_path: Path) -> None:
    path = written_by_version_1(tmp_path)
    assert verify(path).problem == ""  # provable before it is touched
    with Log(tmp_path, AGELESS) as log:
        health = log.log.health()
        assert (health["damage"], health["checked"], health["rows"]) == (None, "whole", 2)
        assert [(left.run.run_id, left.options) for left in log.log.unfinished()] == [("r-waiting", '{"timeout_s":3}')]
        old = log.show("r-ended")
        assert (old.result, old.idempotency_key, old.black_box, old.damaged) == (b"{}", None, None, False)
        log.log.started(started("r-waiting"))
        log.log.ended(ended("r-waiting", black_box='{"lines":[]}'))
        assert log.log.queued(queued("r-new", idempotency_key="k", fingerprint="f"))
        log.log.ended(ended("r-new"))
        log.settle(2)
    assert version_of(path) == schema.VERSION
    found = verify(path)
    assert (found.problem, found.whole, found.version) == ("", True, schema.VERSION)
    with Log(tmp_path, AGELESS) as log:
        assert log.log.health()["damage"] is None
        assert log.show("r-waiting").black_box == '{"lines":[]}'
        assert log.show("r-new").idempotency_key == "k"


def test_a_new_log_and_one_brought_up_to_date_have_the_same_tables(tmp_path: Path) -> None:
    path = written_by_version_1(tmp_path)
    Log(tmp_path, AGELESS).log.close(10.0)
    connection = schema.connect_reader(path)
    try:
        assert schema.definitions(connection) == schema.expected_definitions()
    finally:
        connection.close()


def test_the_old_tables_are_those_that_the_steps_begin_with() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(TABLES)
    assert schema.definitions(connection) == schema.expected_definitions(1)
    connection.close()


@pytest.mark.parametrize("harm", [
    "DROP TRIGGER runs_end_once",
    "DROP INDEX runs_by_agent",
    "UPDATE log SET schema_version = 2",
    "UPDATE runs SET caller = 'else' WHERE run_id = 'r-waiting'",
    "ALTER TABLE runs ADD COLUMN idempotency_key TEXT",
])  # fault 49
def test_a_damaged_log_of_version_1_is_put_aside_as_it_was(tmp_path: Path, harm: str) -> None:
    path = written_by_version_1(tmp_path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(harm)
    connection.close()
    with Log(tmp_path, AGELESS) as log:
        damage = log.log.health()["damage"]
        assert damage is not None and log.log.health()["rows"] == 0
    connection = sqlite3.connect(tmp_path / damage["kept_as"])
    assert len(connection.execute("PRAGMA table_info(runs)").fetchall()) < len(schema.COLUMNS)
    connection.close()


def test_an_update_that_is_interrupted_is_made_again(tmp_path: Path) -> None:
    path = written_by_version_1(tmp_path)
    connection = schema.connect_writer(path)
    with pytest.raises(RuntimeError):
        schema.migrate(_BreaksAt(connection, "CREATE INDEX"), 1)  # type: ignore[arg-type]
    connection.close()
    assert version_of(path) == 1 and verify(path).problem == ""
    with Log(tmp_path, AGELESS) as log:
        assert (log.log.health()["damage"], log.log.health()["rows"]) == (None, 2)


class _BreaksAt:
    """A connection whose process dies before a statement."""

    def __init__(self, connection: sqlite3.Connection, words: str) -> None:
        self._connection = connection
        self._words = words

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(self._words):
            raise RuntimeError("killed")
        return self._connection.execute(statement, *values)
