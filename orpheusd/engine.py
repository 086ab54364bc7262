"""The engine: feeds the supervisor and carries out what it returns. The only caller of `Supervisor.handle`.

It holds what the supervisor refuses to know: inputs, results, callers, and the processes. It runs on one event
loop and never awaits, so events are handled one at a time, in order.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from orpheusd.blackbox import BlackBoxes
from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.invariants import check
from orpheusd.core.pool import Policy
from orpheusd.core.supervisor import Supervisor
from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.outcome import Outcome
from orpheusd.process.causes import MESSAGE_LIMIT, TRACEBACK_LIMIT, TYPE_LIMIT
from orpheusd.process.plan import Plan
from orpheusd.process.processes import Processes, Sinks
from orpheusd.process.remains import Remains
from orpheusd.process.sandbox import Interpreter, Isolation, RuntimeLib
from orpheusd.recorder import Recorder
from orpheusd.remembered import Remembered
from orpheusd.why import Explanations
from orpheusd.wire.worker import ENDED_STATES, Message

log = logging.getLogger(__name__)

#: Of a dead worker's stack this much goes into the agent's log; the record of its run has all of it.
STACK_LINES = 200
#: What is kept of an error a worker tells: characters. A worker cuts by itself; a lying one is cut here.
ERROR_LIMITS = {"type": TYPE_LIMIT, "message": MESSAGE_LIMIT, "traceback": TRACEBACK_LIMIT}


class Pending(NamedTuple):
    """A run whose caller waits: its input, and what to call with pieces of output and with the outcome.

    `source` is the door it came through, `caller` who sent it, for the run log.
    """

    payload: bytes
    source: str
    caller: str
    on_outcome: Callable[[Outcome], None]
    on_event: Callable[[str, dict[str, Any]], None] | None


class Verdict(NamedTuple):
    """What became of a change: `error` is "" when it was carried out."""

    error: str


class Engine:
    """Invariant: `pending` has exactly the runs that were accepted and are not resolved."""

    def __init__(
        self,
        runtime_dir: Path,
        isolation: Isolation,
        interpreter: Interpreter,
        lib: RuntimeLib,
        policy: Policy,
        boot_id: str,
        recorder: Recorder,
        remembered: Remembered,
        on_log: Callable[[str, dict[str, Any]], None],
        on_note: Callable[[str, str], None],
        debug: bool = False,
    ) -> None:
        self.supervisor = Supervisor(boot_id, policy, random.random)
        self.processes = Processes(
            runtime_dir, isolation, interpreter, lib,
            Sinks(self.feed, self._died, self._ended, self._output, self._log, on_note))
        self.plans: dict[tuple[str, int], Plan] = {}
        self.pending: dict[str, Pending] = {}
        self.stopped = asyncio.Event()
        self.explanations = Explanations()
        self._black_boxes = BlackBoxes()
        self._loop = asyncio.get_running_loop()
        self._recorder = recorder
        self._remembered = remembered
        self._on_log = on_log
        self._debug = debug
        self._verdicts: dict[str, asyncio.Future[Verdict]] = {}
        self._waiting: deque[ev.Event] = deque()
        self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf
        self._ended_message: Message | None = None
        self._do: dict[type[Any], Callable[[Any], None]] = {
            ef.Dispatch: self._dispatch,
            ef.Resolve: self._resolve,
            ef.StartTemplate: self._start_template,
            ef.StopTemplate: lambda effect: self.processes.stop_template(effect.template),
            ef.KillTemplate: lambda effect: self.processes.kill_template(effect.template),
            ef.ForkWorker: lambda effect: self.processes.fork(effect.template, effect.worker),
            ef.StopWorker: lambda effect: self.processes.stop(effect.worker),
            ef.AbortWorker: lambda effect: self.processes.abort(effect.worker, effect.why),
            ef.KillWorker: lambda effect: self.processes.kill(effect.worker, effect.why),
            ef.CancelRun: lambda effect: self.processes.cancel(effect.worker, effect.run, effect.reason),
            ef.EndSession: self._end_session,
            ef.VersionPromoted: self._promoted,
            ef.VersionRefused: self._refused,
            ef.AgentRemoved: lambda effect: self._decide(effect.request, ""),
            ef.Stopped: lambda effect: self.stopped.set(),
        }

    def feed(self, event: ev.Event) -> None:
        """Tell the supervisor, and do what it says. An event that a doing causes comes after it."""
        self._waiting.append(event)
        if self._turning:
            return
        self._turning = True
        try:
            while self._waiting:
                event = self._waiting.popleft()
                for effect in self.supervisor.handle(event, self.now()):
                    self._do[type(effect)](effect)
                if event.__class__ is ev.WorkerExited:
                    self._black_boxes.forget(event.worker)
                if self._debug:
                    check(self.supervisor)
        except Exception as error:
            # half a turn was carried out: whoever called may not make light of it
            self._loop.call_exception_handler({"message": "the engine has a fault", "exception": error})
            raise
        finally:
            self._turning = False
        self._arm()

    def now(self) -> float:
        """The supervisor's clock: monotonic seconds. uvloop moves its own once a turn, by milliseconds."""
        return time.monotonic()

    def start_run(self, event: ev.RunRequested, pending: Pending) -> None:
        """Accept a run. Its outcome comes through `pending.on_outcome`, perhaps before this returns.

        Raises OrpheusError(overloaded) when the run log takes nothing.
        """
        self._recorder.accepted(
            event.run, event.agent, event.session, pending.source, pending.caller, pending.payload)
        self.pending[event.run] = pending
        self.feed(event)

    @contextlib.contextmanager
    def verdict(self, request: str) -> Iterator["asyncio.Future[Verdict]"]:
        """A future for the supervisor's verdict on `request`, which must be fed inside the `with`."""
        future = self._verdicts[request] = self._loop.create_future()
        try:
            yield future
        finally:
            del self._verdicts[request]

    def _arm(self) -> None:
        """Wake up at the supervisor's next deadline, or earlier: that costs less than a timer for each run."""
        deadline = self.supervisor.next_deadline()
        if deadline is None or deadline >= self._wake_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - self.now()), self._time_passed)

    def _time_passed(self) -> None:
        self._timer, self._wake_at = None, math.inf
        self.feed(ev.TimePassed())

    # What the supervisor orders

    def _start_template(self, effect: ef.StartTemplate) -> None:
        self.processes.start_template(effect.template, self.plans[effect.agent, effect.version])

    def _dispatch(self, effect: ef.Dispatch) -> None:
        pending = self.pending[effect.run]
        fields = {
            "run_id": effect.run, "session_id": effect.session, "context": effect.context, "turn": effect.turn,
            "timeout_s": effect.timeout_s, "stream": pending.on_event is not None,
        }  # fmt: skip
        self.processes.run(effect.worker, fields, pending.payload)
        worker = self.supervisor.pool.workers[effect.worker]
        self._recorder.started(effect, worker)
        if effect.context == "new" and effect.session is not None:
            self._remembered.begun(worker.agent, effect.session)

    def _resolve(self, effect: ef.Resolve) -> None:
        pending = self.pending.pop(effect.run, None)
        message = self._ended_message
        said = message.payload if message is not None and message.fields["run_id"] == effect.run else b""
        error: dict[str, Any] = {}
        text = effect.message
        if effect.code and said:
            error = _read_error(said)
            text = _sentence(effect.code, error) or text
        black_box = self._black_boxes.of(effect.worker, effect.cause) if effect.worker and effect.cause else {}
        outcome = Outcome(
            effect.run, effect.state, effect.code, text, b"" if effect.code else said, error, effect.worker,
            effect.session, effect.context, effect.turn, round(effect.duration_s * 1000, 3), effect.cause, effect.why,
            black_box)
        self._recorder.ended(outcome)
        self.explanations.keep(outcome)
        if effect.session is not None and effect.context is not None:
            self._remembered.seen(effect.agent, effect.session, effect.turn)
        if pending is not None:
            pending.on_outcome(outcome)

    def _end_session(self, effect: ef.EndSession) -> None:
        self._remembered.ended(effect.agent, effect.session)
        if effect.worker is not None:
            self.processes.end_session(effect.worker, effect.session, effect.reason)

    def _promoted(self, effect: ef.VersionPromoted) -> None:
        log.info("%s: version %d serves", effect.agent, effect.version)
        self._decide(effect.request, "")

    def _refused(self, effect: ef.VersionRefused) -> None:
        log.warning("%s: version %d is refused: %s", effect.agent, effect.version, effect.message.partition("\n")[0])
        self._decide(effect.request, effect.message)

    def _decide(self, request: str, error: str) -> None:
        future = self._verdicts.get(request)
        if future is not None and not future.done():
            future.set_result(Verdict(error))

    # What workers say

    def _died(self, worker_id: str, remains: Remains) -> None:
        """Its death follows as an event. Where it was is told in the log too, where others look first."""
        self._black_boxes.died(worker_id, remains)
        for text in remains.stack.splitlines()[:STACK_LINES]:
            self._log(worker_id, Message("log", {
                "run_id": None, "session_id": None, "stream": "stderr", "text": text, "dropped_bytes": 0}))

    def _ended(self, worker_id: str, message: Message) -> None:
        message = _believable(message)
        fields = message.fields
        if fields["dropped_bytes"]:
            self._tell_dropped(worker_id, fields["run_id"], fields["dropped_bytes"])
        self._ended_message = message
        self.feed(ev.RunEnded(
            worker_id, fields["run_id"], fields["state"], fields["code"], fields["context"] == "restored",
            fields["saved"]))
        self._ended_message = None

    def _output(self, worker_id: str, message: Message) -> None:
        pending = self._pending_on(worker_id, message.fields["run_id"])
        if pending is not None and pending.on_event is not None and _is_json(message.payload):
            data = orjson.Fragment(message.payload)
            pending.on_event("output", {"seq": message.fields["seq"], "data": data})

    def _log(self, worker_id: str, message: Message) -> None:
        worker = self.supervisor.pool.workers.get(worker_id)
        if worker is None:
            return
        fields = message.fields
        run_id, session_id = fields["run_id"], fields["session_id"]
        if run_id is None and len(worker.runs) == 1:
            # written past Python: it can only be the one run that is going on
            run = next(iter(worker.runs.values()))
            run_id, session_id = run.id, run.session
        row = {"worker_id": worker_id, "run_id": run_id, "session_id": session_id, "stream": fields["stream"],
               "text": fields["text"]}  # fmt: skip
        if fields["dropped_bytes"]:
            row["dropped_bytes"] = fields["dropped_bytes"]
        self._on_log(worker.agent, row)
        self._black_boxes.line(worker_id, row["stream"], row["text"])
        pending = self._pending_on(worker_id, run_id) if run_id is not None else None
        if pending is not None and pending.on_event is not None:
            pending.on_event("log", {"data": {"stream": row["stream"], "text": row["text"]}})

    def _tell_dropped(self, worker_id: str, run_id: str, dropped_bytes: int) -> None:
        """A run printed more than is kept: say so where its output is read."""
        run = self.supervisor.runs.get(run_id)
        pending = self._pending_on(worker_id, run_id)
        if run is None or pending is None:
            return
        text = f"({dropped_bytes} bytes more were printed by this run and not kept)"
        self._on_log(run.agent, {"worker_id": worker_id, "run_id": run_id, "session_id": run.session,
                                 "stream": "stderr", "text": text, "dropped_bytes": dropped_bytes})  # fmt: skip
        if pending.on_event is not None:
            pending.on_event("dropped", {"data": {"bytes": dropped_bytes}})

    def _pending_on(self, worker_id: str, run_id: str) -> Pending | None:
        """The pending run, if this worker is really the one that executes it."""
        run = self.supervisor.runs.get(run_id)
        if run is None or run.worker is None or run.worker.id != worker_id:
            return None
        return self.pending.get(run_id)


def _believable(message: Message) -> Message:
    """An `ended` that can be passed on: a worker is not trusted to send states that exist or JSON that is JSON."""
    fields = message.fields
    if fields["code"] not in ENDED_STATES.get(fields["state"], ()):
        return _failed(message, "handler-failed", "the worker reported an end that does not exist")
    if len(message.payload) > RESULT_LIMIT_BYTES and fields["state"] == "completed":
        return _failed(message, "too-large", f"the result is over the limit of {RESULT_LIMIT_BYTES} bytes")
    if not _is_json(message.payload):
        return _failed(message, "unserialisable-result", "the result is not JSON that can be passed on")
    return message


def _failed(message: Message, code: str, text: str) -> Message:
    fields = {**message.fields, "state": "failed", "code": code}
    return Message(message.type, fields, orjson.dumps({"type": "", "message": text, "traceback": ""}))


def _is_json(payload: bytes) -> bool:
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return False
    return True


def _read_error(payload: bytes) -> dict[str, Any]:
    """The error a worker reported, reduced to the three texts it may have."""
    error = orjson.loads(payload)
    if not isinstance(error, dict):
        return {}
    return {name: error[name][:limit] for name, limit in ERROR_LIMITS.items() if isinstance(error.get(name), str)}


def _sentence(code: str, error: dict[str, Any]) -> str:
    """One line that says what went wrong, as the agent put it."""
    message = str(error.get("message", ""))
    if code == "handler-failed" and error.get("type"):
        return f"{error['type']}: {message}" if message else str(error["type"])
    return message
