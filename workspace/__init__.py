"""The library an agent imports: its durable directory, its locks, and the run it is in.

It needs nothing but the standard library and works without Orpheus as well, for an agent's own tests: the
workspace is then `$WORKSPACE_DIR`, or `./workspace-data` when that is not set; `emit` does nothing and the
attributes of `run` are None. It refuses to know how a worker runs a handler.
"""

from workspace.current import Cancelled, TimedOut, emit, run
from workspace.files import load, path, save
from workspace.hooks import on_session_end, on_start
from workspace.locks import lock
from workspace.memory import NoSession, SessionConflict, SessionTooLarge, session

__all__ = [
    "Cancelled", "NoSession", "SessionConflict", "SessionTooLarge", "TimedOut", "emit", "load", "lock",
    "on_session_end", "on_start", "path", "run", "save", "session",
]  # fmt: skip
