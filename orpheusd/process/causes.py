"""Why a process ended or would not start, in words."""

import signal

import orjson

#: What is kept of what a process says of itself, in characters: its own limits, which one that lies ignores.
TYPE_LIMIT, MESSAGE_LIMIT, TRACEBACK_LIMIT = 256, 8 * 1024, 64 * 1024


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
