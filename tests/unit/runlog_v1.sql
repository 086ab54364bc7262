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
