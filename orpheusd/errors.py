"""The errors Orpheus tells its callers, each made once and mapped by one table.

This file knows nothing of sockets, HTTP libraries or terminals: a door looks its own number up here.
Anything that is not an `OrpheusError` becomes `internal` at the door it reaches.
"""

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What one error code becomes at each door."""

    http_status: int
    exit_code: int
    retry_after_s: int | None = None


CODES: dict[str, Outcome] = {
    "invalid-request": Outcome(400, 2),
    "permission-denied": Outcome(403, 77),
    "not-found": Outcome(404, 1),
    "conflict": Outcome(409, 1),
    "session-busy": Outcome(409, 1),
    "context-not-warm": Outcome(409, 1),
    "too-large": Outcome(413, 2),
    "session-queue-full": Outcome(429, 75, retry_after_s=1),
    "cancelled": Outcome(499, 130),
    "handler-failed": Outcome(500, 1),
    "unserialisable-result": Outcome(500, 1),
    "internal": Outcome(500, 70),
    "worker-crashed": Outcome(502, 70),
    "overloaded": Outcome(503, 75, retry_after_s=1),
    "draining": Outcome(503, 75, retry_after_s=5),
    "quarantined": Outcome(503, 75, retry_after_s=30),
    "timed-out": Outcome(504, 75),
    "unreachable": Outcome(503, 69),
}


#: How `orpheusd` exits when a fault of its own made it stop (EX_SOFTWARE of sysexits.h).
EXIT_FAULT = 70


class OrpheusError(Exception):
    """A failure the caller is meant to read: what happened, why, and what to do next.

    `code` is a key of `CODES`; `details` are JSON-ready facts that scripts may use.
    """

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        if code not in CODES:
            raise KeyError(f"unknown error code {code!r}")
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}

    @property
    def outcome(self) -> Outcome:
        return CODES[self.code]

    @property
    def retry_after_s(self) -> int | None:
        """Seconds after which asking again makes sense, or None when it does not."""
        stated = self.details.get("retry_after_s")
        return stated if isinstance(stated, int) else self.outcome.retry_after_s


class CannotStart(OrpheusError):
    """Something of somebody else's is in the daemon's way. `exit_code` says what, to whoever supervises the daemon."""

    exit_code: int

    def __init__(self, message: str) -> None:
        super().__init__("conflict", message)


class AlreadyRunning(CannotStart):
    """Another daemon has the state or the runtime directory."""

    exit_code = 100


class AddressInUse(CannotStart):
    """Another process listens on the HTTP door's address."""

    exit_code = 98
