"""The database: its tables, what it makes impossible, and how a connection to it is set up.

One row per run. A run that has ended can be neither changed nor entered again: `run_id` is unique, a trigger
refuses every update of an ended row, and another refuses to delete a run that has not ended. So a second
terminal state is impossible whatever the program does.
"""

import sqlite3
from pathlib import Path
from urllib.parse import quote

#: Stored in the database; a change of the tables gets the next number and a step from the one before.
VERSION = 2
#: STRICT tables and UPDATE … FROM.
OLDEST_SQLITE = (3, 37, 0)

#: What version 2 added to a row.
ADDED = ("idempotency_key", "fingerprint", "black_box")
#: The columns of a row, in the order of every row tuple: what was measured first, payloads, what later versions
#: added, then the checksum.
COLUMNS = (
    "seq", "run_id", "agent", "session_id", "source", "caller", "detached", "options", "queued_at", "input_bytes",
    "version", "worker_id", "context", "turn", "started_at",
    "state", "code", "ended_at", "duration_us", "result_bytes", "error_type", "error_message", "traceback",
    "exit_cause", "input", "result", *ADDED, "checksum",
)  # fmt: skip
#: The columns that never change once a row is there; `Started` and `Ended` change the others.
FIXED = frozenset((*COLUMNS[:COLUMNS.index("version")], "input", "idempotency_key", "fingerprint"))

#: Commits whose chain links are kept: how far the mark may lie behind after a power failure, twice over.
RING = 1024

#: The tables of version 1.
_TABLES = """
CREATE TABLE log (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  schema_version INTEGER NOT NULL,
  log_id BLOB NOT NULL
) STRICT;
CREATE TABLE runs (
  seq INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  agent TEXT NOT NULL,
  session_id TEXT,
  source TEXT NOT NULL,
  caller TEXT NOT NULL,
  detached INTEGER NOT NULL,
  options TEXT,
  queued_at INTEGER NOT NULL,
  input_bytes INTEGER NOT NULL,
  version INTEGER,
  worker_id TEXT,
  context TEXT,
  turn INTEGER,
  started_at INTEGER,
  state TEXT NOT NULL,
  code TEXT,
  ended_at INTEGER,
  duration_us INTEGER,
  result_bytes INTEGER NOT NULL,
  error_type TEXT,
  error_message TEXT,
  traceback TEXT,
  exit_cause TEXT,
  input BLOB,
  result BLOB,
  checksum INTEGER NOT NULL,
  CHECK (state IN ('queued', 'started') OR (ended_at IS NOT NULL AND state IN
    ('completed', 'failed', 'timed-out', 'cancelled', 'crashed', 'expired', 'rejected'))),
  CHECK (state NOT IN ('queued', 'started') OR ended_at IS NULL)
) STRICT;
CREATE INDEX runs_by_agent ON runs (agent);
CREATE INDEX runs_by_session ON runs (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX runs_by_state ON runs (state) WHERE state <> 'completed';
CREATE TRIGGER runs_end_once BEFORE UPDATE ON runs
WHEN OLD.ended_at IS NOT NULL OR NEW.run_id <> OLD.run_id OR (OLD.state = 'started' AND NEW.state = 'queued')
BEGIN SELECT RAISE(ABORT, 'a run ends once, and moves forward only'); END;
CREATE TRIGGER runs_stay_until_ended BEFORE DELETE ON runs WHEN OLD.ended_at IS NULL
BEGIN SELECT RAISE(ABORT, 'a run that has not ended cannot be deleted'); END;
CREATE TABLE chain (
  slot INTEGER PRIMARY KEY,
  commit_no INTEGER NOT NULL,
  row_count INTEGER NOT NULL,
  total INTEGER NOT NULL,
  next_seq INTEGER NOT NULL,
  digest BLOB NOT NULL
) STRICT;
"""

#: By version: what makes its tables of those of the version before. No step touches a row, so that a log is brought
#: up to date in no time and its chain holds as it did: `chain.checksum` leaves out what a row does not have.
_STEPS = {2: """
ALTER TABLE runs ADD COLUMN idempotency_key TEXT;
ALTER TABLE runs ADD COLUMN fingerprint TEXT;
ALTER TABLE runs ADD COLUMN black_box TEXT;
CREATE INDEX runs_by_key ON runs (agent, idempotency_key) WHERE idempotency_key IS NOT NULL;
"""}

#: Run states that are not terminal; a partial index holds them.
UNFINISHED = ("queued", "started")


def connect_writer(path: Path, busy_timeout_s: float = 1.0) -> sqlite3.Connection:
    """The one read-write connection. It never checkpoints by itself: errors of that would be swallowed."""
    connection = sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=64)
    try:
        # Before the first table, so that freed pages can be given back in small steps.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 0",
            "journal_size_limit = 67108864",
            "cache_size = -16384",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "recursive_triggers = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, busy_timeout_s: float = 1.0) -> sqlite3.Connection:
    """A connection that cannot write, checkpoint on closing included. Text that is no UTF-8 is shown escaped."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=busy_timeout_s, isolation_level=None,
        check_same_thread=False)
    connection.text_factory = _lenient
    return connection


def create(connection: sqlite3.Connection, log_id: bytes, genesis: bytes) -> None:
    """Make the tables of an empty log, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _statements(VERSION):
        connection.execute(statement)
    connection.execute("INSERT INTO log VALUES (1, ?, ?)", (VERSION, log_id))
    connection.executemany(
        "INSERT INTO chain VALUES (?, ?, 0, 0, 1, ?)",
        [(slot, slot - RING if slot else 0, b"" if slot else genesis) for slot in range(RING)])
    connection.execute("COMMIT")


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of `version` up to date, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for later in range(version + 1, VERSION + 1):
        for statement in _split(_STEPS[later]):
            connection.execute(statement)
    connection.execute("UPDATE log SET schema_version = ?", (VERSION,))
    connection.execute("COMMIT")


def selected(version: int) -> str:
    """How a SELECT names `COLUMNS` in a log of `version`: those it lacks are NULL."""
    return ", ".join("NULL" if version == 1 and name in ADDED else name for name in COLUMNS)


def definitions(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """What the database says its tables, indexes and triggers are."""
    return connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()


def expected_definitions(version: int = VERSION) -> list[tuple[str, str, str | None]]:
    """What `definitions` is for a log of `version` that nobody has tampered with."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in _statements(version):
            connection.execute(statement)
        return definitions(connection)
    finally:
        connection.close()


def _statements(version: int) -> list[str]:
    """What makes the tables of `version` in an empty database."""
    scripts = [_TABLES, *(_STEPS[later] for later in range(2, version + 1))]
    return [statement for script in scripts for statement in _split(script)]


def _split(script: str) -> list[str]:
    """The script's statements: each ends its line, and nothing inside a trigger does."""
    return [statement.strip() for statement in script.split(";\n") if statement.strip()]


def _lenient(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
