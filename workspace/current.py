"""The run a handler is in: what it may know about it, say from it, and how it is told to stop.

Everything is read from the context of the caller, so it is right with several runs at a time, and it is
simply absent (None, or no effect) where there is no run.
"""

import time
from typing import Any

from workspace import _runtime


class Cancelled(BaseException):
    """Raised in a sync handler whose run was cancelled.

    Like `KeyboardInterrupt` not an `Exception`, so that a retry loop with `except Exception` does not swallow
    it. Clean up with `finally` and let it pass: the run ends as cancelled whatever the handler does with it,
    and a worker that does not come back within the grace is killed. An async handler sees
    `asyncio.CancelledError` instead.
    """


class TimedOut(BaseException):
    """Raised in a sync handler whose run took longer than its timeout; otherwise like `Cancelled`."""


# Tracebacks and errors call them by the name an agent imports them by.
Cancelled.__module__ = TimedOut.__module__ = "workspace"


def emit(event: Any) -> None:
    """Send a piece of progress or partial output to the caller of this run, if the caller streams.

    `event` is anything a handler could return. Without a streaming caller, and outside a run, nothing
    happens. Raises ValueError when JSON cannot carry `event`.
    """
    active = _runtime.active.get()
    if active is not None:
        active.emit(event)


class CurrentRun:
    """The run of whoever asks.

    Invariant: it holds nothing; every attribute is looked up in the caller's context, and is None outside a run.
    """

    __slots__ = ()

    @property
    def id(self) -> str | None:
        active = _runtime.active.get()
        return active.id if active else None

    @property
    def agent(self) -> str | None:
        active = _runtime.active.get()
        return active.agent if active else None

    @property
    def version(self) -> int | None:
        active = _runtime.active.get()
        return active.version if active else None

    @property
    def session(self) -> str | None:
        """The session id of the run, None when it came without one."""
        active = _runtime.active.get()
        return active.session if active else None

    @property
    def context(self) -> str | None:
        """What became of the session's memory: new, warm, spilled, restored or lost."""
        active = _runtime.active.get()
        return active.context if active else None

    @property
    def turn(self) -> int | None:
        """Which run of its session this is, counted from 1 over those that have finished; 0 without a session."""
        active = _runtime.active.get()
        return active.turn if active else None

    @property
    def deadline(self) -> float | None:
        """When the run times out, in seconds since the epoch; None when it has no timeout."""
        active = _runtime.active.get()
        return active.deadline if active else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the run times out, never below 0; None when it has no timeout."""
        active = _runtime.active.get()
        if active is None or active.deadline_monotonic_s is None:
            return None
        return max(0.0, active.deadline_monotonic_s - time.monotonic())

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.agent}>" if self.id else "<no run>"


run = CurrentRun()
