"""What the caller of a run is told, whether it has just ended or is read from the run log: the same, byte for byte.

It knows how to say things through a call, and nothing of how runs come about.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from orpheusd.core.events import RunRequested
from orpheusd.errors import OrpheusError
from orpheusd.outcome import NO_WHY, Outcome
from orpheusd.runlog.rows import RunDetail

#: Events of a stream that may wait for its run to be written, which takes milliseconds.
EARLY_EVENTS = 1000


class Call(Protocol):
    """Who asks, through which door (`ctl` or `http`), and how to answer."""

    @property
    def source(self) -> str: ...

    @property
    def caller(self) -> str: ...

    def answer(self, result: Any) -> None: ...

    def refuse(self, error: OrpheusError) -> None: ...

    def event(self, params: dict[str, Any]) -> None: ...

    def on_gone(self, callback: Callable[[], None]) -> None: ...

    def at_end(self, callback: Callable[[], None]) -> None: ...


class Acceptance:
    """The answer to the caller of a detached run, who does not wait for its end.

    Invariant: given once: that the run is accepted, or that it was refused, when that is known first.
    """

    def __init__(self, call: Call, event: RunRequested) -> None:
        self.given = False
        self._call = call
        self._event = event

    def written(self, committed: bool) -> None:
        """The run is in the log, or cannot be."""
        if self.given:
            return
        self.given = True
        if committed:
            self._call.answer({"request_id": self._event.run, "state": "queued", "agent": self._event.agent,
                               "session_id": self._event.session})  # fmt: skip
        else:
            self._call.refuse(OrpheusError("internal", "the run cannot be recorded: the run log has failed, see "
                                                       "`orpheusctl status`", {"request_id": self._event.run}))

    def over(self, outcome: Outcome) -> None:
        if not self.given and outcome.state == "rejected":
            self.given = True
            answer_run(self._call, outcome)


class Announcement:
    """What a streaming caller hears: that the run is accepted, once the log has it, then its events, then its end.

    Invariant: nothing is told before the acceptance. Events that come earlier wait for it, at most EARLY_EVENTS.
    """

    def __init__(self, call: Call, run_id: str, over: Callable[[Outcome], None]) -> None:
        self._call = call
        self._run_id = run_id
        self._over = over
        self._early: list[dict[str, Any]] | None = []

    @property
    def given(self) -> bool:
        return self._early is None

    def event(self, name: str, params: dict[str, Any]) -> None:
        told = {"event": name, **params}
        if self._early is None:
            self._call.event(told)
            return
        self._early.append(told)
        if len(self._early) >= EARLY_EVENTS:
            self.written(True)

    def written(self, _committed: bool) -> None:
        """The run is in the log, or cannot be; then its end will say so."""
        if self._early is not None:
            early, self._early = self._early, None
            for told in (accepted(self._run_id), *early):
                self._call.event(told)

    def over(self, outcome: Outcome) -> None:
        if outcome.state != "rejected":
            self.written(True)
        self._early = None
        self._over(outcome)


def accepted(run_id: str) -> dict[str, Any]:
    return {"event": "accepted", "data": {"request_id": run_id}}


def answer_run(call: Call, outcome: Outcome) -> None:
    session = None
    if outcome.session_id is not None:
        session = {"id": outcome.session_id, "context": outcome.context, "turn": outcome.turn}
    facts = {"request_id": outcome.run_id, "duration_ms": outcome.duration_ms, "worker_id": outcome.worker_id,
             "session": session}  # fmt: skip
    if not outcome.code:
        # the result is the last: the HTTP door reads what is before it
        call.answer({**facts, "result": orjson.Fragment(outcome.result)})
        return
    if outcome.retry_in_s:
        facts["retry_after_s"] = math.ceil(outcome.retry_in_s)
    error_type, traceback = outcome.error.get("type"), outcome.error.get("traceback")
    if error_type is not None or traceback is not None:
        facts.update(error_type=error_type, traceback=traceback)
    call.refuse(OrpheusError(outcome.code, outcome.message or outcome.state, {**facts, "state": outcome.state}))


def outcome_of(detail: RunDetail) -> Outcome:
    """How a run ended, from its row. Raises OrpheusError when the row cannot tell."""
    run = detail.run
    if run.ended_at is None:
        raise OrpheusError("internal", f"run {run.run_id} is over, and its end could not be recorded; see "
                                       "`orpheusctl status`", {"request_id": run.run_id})
    if detail.damaged or (not run.code and detail.result is None):
        raise OrpheusError("internal", f"run {run.run_id} ended {run.state}, and its result cannot be read from the "
                                       "run log", {"request_id": run.run_id})
    error = {"type": run.error_type, "traceback": detail.traceback}
    return Outcome(
        run.run_id, run.state, run.code or "", run.error_message or "", detail.result or b"",
        {name: text for name, text in error.items() if text is not None}, run.worker_id, run.session_id, run.context,
        run.turn or 0, (run.duration_us or 0) / 1000, run.exit_cause or "", NO_WHY, 0.0, {})
