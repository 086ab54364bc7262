"""Why a process ended or would not start, in words."""

import signal
from typing import NamedTuple

import orjson

#: What is kept of what a process says of itself, in characters: its own limits, which one that lies ignores.
TYPE_LIMIT, MESSAGE_LIMIT, TRACEBACK_LIMIT = 256, 8 * 1024, 64 * 1024
#: And of the reason for which we ended it, which may quote what it said.
WHY_LIMIT = 160

#: What we end a process with.
OURS = (-signal.SIGABRT, -signal.SIGKILL)


#: The unit of an agent's `memory`.
MB = 1024 * 1024


class OutOfMemory(NamedTuple):
    """Who killed for want of memory, and the limit it was about; 0 when it was the box that had no more."""

    by: str
    limit_bytes: int = 0
    peak_bytes: int = 0

    def __str__(self) -> str:
        numbers = f", limit {self.limit_bytes // MB} MB, peak {self.peak_bytes // MB} MB" if self.limit_bytes else ""
        return f"out of memory: killed by {self.by}{numbers}"


class Cause(NamedTuple):
    """Why a worker is dead, as far as it is known.

    `status` is its exit code or minus the signal that killed it, None if nobody could tell. `why` is the reason for
    which we ended it, "" if we did not. `oom`: what it died of was want of memory.
    """

    status: int | None
    why: str = ""
    oom: OutOfMemory | None = None

    def __str__(self) -> str:
        told = cause_of(self.status)
        if self.oom is not None and self.status in (None, -signal.SIGKILL):
            return f"{self.oom}, {told}"
        if self.why and (self.status is None or self.status in OURS):
            return f"{told}, ended by orpheusd: {self.why[:WHY_LIMIT]}"
        return f"{told}, not sent by orpheusd" if self.status == -signal.SIGKILL else told


def cause_of(status: int | None) -> str:
    """An exit status in words: a code, or the signal that killed."""
    if status is None:
        return "cause unknown"
    if status >= 0:
        return f"exit {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def error_text(payload: bytes) -> str:
    """What the sender of a `failed` said, as one message with the agent's own traceback after it."""
    try:
        error = orjson.loads(payload)
        kind, message = str(error["type"])[:TYPE_LIMIT], str(error["message"])[:MESSAGE_LIMIT]
        head = f"{kind}: {message}" if kind else message
        traceback = str(error.get("traceback") or "").strip()[-TRACEBACK_LIMIT:]
    except (ValueError, TypeError, KeyError):
        return "it gave no readable reason"
    return f"{head}\n{traceback}" if traceback else head
