"""What the database makes impossible by itself, whatever the program does."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.core.run import TRANSITIONS, RunState
from orpheusd.runlog import schema
from tests.runlog_kit import Log, queued, started, whole_run

#: A whole row; `state`, `ended_at` and the rest are changed by the tests.
INSERT = (
    "INSERT INTO runs (seq, run_id, agent, source, caller, detached, queued_at, input_bytes, state, ended_at,"
    " result_bytes, checksum) VALUES (?, ?, 'a', 'http', '', 0, 0, 0, ?, ?, 0, 0)")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a run in each kind of state, closed."""
    with Log(tmp_path_factory.mktemp("log")) as log:
        whole_run(log.log, "r-ended")
        assert log.log.queued(queued("r-queued"))
        assert log.log.queued(queued("r-started"))
        log.log.started(started("r-started"))
        log.settle(1)
        log.written()
    return log.path


@pytest.fixture
def database(tmp_path: Path, written: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy, with none of the log's own code before it."""
    shutil.copy(written, tmp_path)
    connection = sqlite3.connect(tmp_path / written.name, isolation_level=None)
    yield connection
    connection.close()


@pytest.mark.parametrize("statement", [
    "UPDATE runs SET state = 'failed' WHERE run_id = 'r-ended'",
    "UPDATE runs SET state = 'queued', ended_at = NULL WHERE run_id = 'r-ended'",
    "UPDATE runs SET result = x'00' WHERE run_id = 'r-ended'",
    "UPDATE OR REPLACE runs SET run_id = 'r-ended' WHERE run_id = 'r-started'",
    "UPDATE runs SET run_id = 'r-else' WHERE run_id = 'r-started'",
    "UPDATE runs SET state = 'queued' WHERE run_id = 'r-started'",
    "UPDATE runs SET state = 'completed' WHERE run_id = 'r-started'",
    "UPDATE runs SET ended_at = 1 WHERE run_id = 'r-started'",
    "UPDATE runs SET state = 'over', ended_at = 1 WHERE run_id = 'r-started'",
    "UPDATE runs SET turn = 'many' WHERE run_id = 'r-started'",
    "DELETE FROM runs WHERE run_id = 'r-queued'",
    "DELETE FROM runs",
    f"INSERT INTO runs ({', '.join(schema.COLUMNS)}) SELECT seq + 100, {', '.join(schema.COLUMNS[1:])} FROM runs"
    " WHERE run_id = 'r-ended'",
])  # fmt: skip
def test_a_run_ends_once_and_moves_forward_only(database: sqlite3.Connection, statement: str) -> None:
    before = database.execute("SELECT * FROM runs ORDER BY seq").fetchall()
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(statement)
    assert database.execute("SELECT * FROM runs ORDER BY seq").fetchall() == before


@pytest.mark.parametrize("state", [state for state in RunState if TRANSITIONS[state]], ids=lambda state: state.value)
def test_a_state_of_the_core_that_is_not_terminal_has_no_end(database: sqlite3.Connection, state: RunState) -> None:
    database.execute(INSERT, (10, "r-new", state.value, None))
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(INSERT, (11, "r-newer", state.value, 1))
    assert state.value in schema.UNFINISHED


@pytest.mark.parametrize("state", [state for state in RunState if not TRANSITIONS[state]], ids=lambda s: s.value)
def test_a_terminal_state_of_the_core_has_an_end(database: sqlite3.Connection, state: RunState) -> None:
    database.execute(INSERT, (10, "r-new", state.value, 1))
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(INSERT, (11, "r-newer", state.value, None))
    assert state.value not in schema.UNFINISHED


def test_columns_are_those_of_the_table(database: sqlite3.Connection) -> None:
    in_the_table = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    assert sorted(in_the_table) == sorted(schema.COLUMNS) and len(set(in_the_table)) == len(in_the_table)


def test_the_connection_syncs_each_commit_and_checkpoints_when_told(tmp_path: Path) -> None:
    connection = schema.connect_writer(tmp_path / "new.db")
    values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in (
        "journal_mode", "synchronous", "wal_autocheckpoint", "auto_vacuum")]  # fmt: skip
    connection.close()
    assert values == ["wal", 2, 0, 2]


def test_a_reader_cannot_write(database: sqlite3.Connection) -> None:
    path = Path(database.execute("PRAGMA database_list").fetchone()[2])
    reader = schema.connect_reader(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM chain")
    reader.close()
