"""One run inside a worker, from the `run` message to the `ended` message: what sync and async workers share.

It knows neither threads nor loops, and reads no channel.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import Any, NamedTuple

from orpheusd.wire.worker import Message
from orpheusd.worker import failures
from orpheusd.worker.channel import Channel, ChannelClosed
from orpheusd.worker.launch import Setup
from orpheusd.worker.output import Output, switchboard
from orpheusd.worker.results import RefusedResult, encode
from workspace import Cancelled, TimedOut, _runtime, memory

#: What a sync handler sees for each reason of a `cancel`; the reason is also the state in which the run ends.
REASONS: dict[str, type[BaseException]] = {"cancelled": Cancelled, "timed-out": TimedOut}

#: For a handler that caught what it was told by, or was about to return when it came.
RETURNED = "and the handler returned all the same; what it returned is dropped"


class Outcome(NamedTuple):
    """How a run ended: state and code as the worker protocol has them, and the payload of `ended`."""

    state: str
    code: str
    payload: bytes


class Run:
    """One execution of the handler.

    Invariant: `seq` numbers of its output start at 0 and have no gap; after `end` nothing more is sent for it.
    """

    def __init__(self, message: Message, setup: Setup, worker_id: str, channel: Channel) -> None:
        fields = message.fields
        self.id: str = fields["run_id"]
        self.session_id: str | None = fields["session_id"]
        self.streams: bool = fields["stream"]
        self.started_ns = time.perf_counter_ns()
        self.output = Output(channel, worker_id, self.id, self.session_id)
        self._payload = message.payload
        self._channel = channel
        self._numbers = itertools.count()
        channel.begins(self.id)
        timeout_s = fields["timeout_s"]
        self.state = None if self.session_id is None else memory.State(self.session_id)
        self.active = _runtime.ActiveRun(
            id=self.id,
            agent=setup.agent,
            version=setup.version,
            session=self.session_id,
            context=_context(self.session_id, fields["context"]),
            turn=fields["turn"],
            deadline=None if timeout_s is None else time.time() + timeout_s,
            deadline_monotonic_s=None if timeout_s is None else time.monotonic() + timeout_s,
            emit=self.emit,
            state=self.state,
        )

    def enter(self) -> None:
        """Make this the run of the current context."""
        _runtime.active.set(self.active)
        switchboard.running.set(self.output)

    def input(self) -> Any:
        """What the handler gets. Raises InvalidInput."""
        try:
            value = json.loads(self._payload)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the input is not JSON that Python can read: {error}") from None
        self._payload = b""
        if self.session_id is not None and isinstance(value, dict):
            value.setdefault("session_id", self.session_id)
        return value

    def commit(self) -> None:
        """Save the session's state, now that the handler has succeeded. Raises what `State.commit` raises."""
        if self.state is not None:
            self.state.commit()

    def emit(self, event: Any) -> None:
        """One piece of output from the handler, sent at once if the caller streams."""
        if self.streams and not self.output.over:
            self.send_piece(encode(event, "event"))

    def send_piece(self, piece: bytes) -> None:
        """Waits until it is written. Raises nothing: a lost channel shows at the end of the run."""
        try:
            self._channel.deliver("output", {"run_id": self.id}, piece, self._numbers)
        except ChannelClosed:
            self.streams = False

    def queue_piece(self, piece: bytes) -> None:
        """Like `send_piece` without waiting, for whoever waits in a loop."""
        self._channel.queue("output", {"run_id": self.id}, piece, self._numbers)

    def failure(self, error: BaseException, reason: str | None) -> Outcome:
        """What an exception makes of the run. `reason` is set when the run was told to stop."""
        if reason is not None and isinstance(error, asyncio.CancelledError):
            return Outcome(reason, reason, failures.describe(error, told_text(reason), _told_type(reason)))
        if reason is not None:
            return Outcome(reason, reason, failures.describe(error))
        code, message = "handler-failed", None
        if isinstance(error, RefusedResult | InvalidInput):
            code = error.code
        elif isinstance(error, memory.SessionConflict | memory.SessionTooLarge):
            code = "conflict" if isinstance(error, memory.SessionConflict) else "too-large"
        if isinstance(error, SystemExit):
            message = f"the handler called sys.exit({failures.safe_repr(error.code)}); return a result instead"
        return Outcome("failed", code, failures.describe(error, message))

    def ended(self, outcome: Outcome) -> tuple[dict[str, Any], bytes]:
        """The fields and payload of `ended`; from now on what is printed belongs to no run."""
        self.output.finish()
        return {
            "run_id": self.id,
            "state": outcome.state,
            "code": outcome.code,
            "duration_us": (time.perf_counter_ns() - self.started_ns) // 1000,
            "dropped_bytes": self.output.dropped_bytes,
            "context": self.active.context,
            "saved": self.state is not None and self.state.saved,
        }, outcome.payload


class InvalidInput(Exception):
    """The payload of `run` cannot be decoded here."""

    code = "invalid-request"


def _context(session_id: str | None, told: str | None) -> str | None:
    """What the run meets. Only here is known whether a session that lost its home left something behind."""
    if session_id is None:
        return told
    try:
        if told == "new":
            memory.forget(session_id)  # of a session that has ended, or that nobody remembers
        elif told == "lost" and memory.saved(session_id):
            return "restored"
    except OSError as error:
        print(f"cannot look for the saved state of session {session_id}: {error}", file=sys.stderr)
    return told


def completed(payload: bytes) -> Outcome:
    return Outcome("completed", "", payload)


def told(reason: str, when: str) -> Outcome:
    """The outcome of a run that was told to stop and raised nothing."""
    return Outcome(reason, reason, failures.refusal(_told_type(reason), f"{told_text(reason)} {when}"))


def reason_of(message: Message) -> str:
    """The reason of a `cancel` message."""
    reason: str = message.fields["reason"]
    return reason if reason in REASONS else "cancelled"


def told_text(reason: str) -> str:
    return f"the run {'timed out' if reason == 'timed-out' else 'was cancelled'}"


def _told_type(reason: str) -> str:
    return f"workspace.{REASONS[reason].__name__}"
