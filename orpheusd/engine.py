"""The engine: feeds the supervisor and carries out what it returns. The only caller of `Supervisor.handle`.

It holds what the supervisor refuses to know: inputs, results, callers, and the processes. It runs on one event
loop, and nothing awaits while an event is handled, so events are handled one at a time, in order.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from orpheusd.commits import Commits
from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.invariants import check
from orpheusd.core.pool import Policy
from orpheusd.core.supervisor import Supervisor
from orpheusd.detached import WriteAhead, never_began, options_of
from orpheusd.errors import OrpheusError
from orpheusd.failpoints import reached
from orpheusd.outcome import RELOADED, Outcome, unawaited
from orpheusd.pending import Pending
from orpheusd.process.holdings import Session
from orpheusd.process.monitor import free_mb
from orpheusd.process.plan import Plan
from orpheusd.process.processes import Processes
from orpheusd.process.sandbox import Interpreter, Isolation, RuntimeLib
from orpheusd.process.sinks import Sinks
from orpheusd.recorder import Recorder
from orpheusd.relay import Relay
from orpheusd.remembered import Remembered
from orpheusd.returning import Returning
from orpheusd.said import believable, read_error, sentence
from orpheusd.why import Explanations
from orpheusd.wire.worker import Message

log = logging.getLogger(__name__)

#: What a run is told that was not over when the daemon stopped.
STOPPING = "cancelled while the daemon was stopping: the run was not over in time"


class Verdict(NamedTuple):
    """What became of a change: `error` is "" when it was carried out."""

    error: str


class Engine:
    """Invariant: `pending` has exactly the runs that this daemon accepted and that are not resolved; `_unacknowledged`
    has, with its worker, each run whose end was heard and is not on the disk yet.

    After `shut_down`, `quiet` is set when no run is left, and `stopped` when no process is; `adopted` when no agent
    that was loaded waits for who outlived an earlier daemon. `ends` and `acceptances` hold what waits for the log to
    have a run's end, and a detached run's `queued` row.
    """

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
        on_rolled_back: Callable[[ef.RolledBack], None],
        debug: bool = False,
    ) -> None:
        self.supervisor = Supervisor(boot_id, policy, random.random, free_mb)
        self.plans: dict[tuple[str, int], Plan] = {}
        self.pending: dict[str, Pending] = {}
        relay = self._relay = Relay(self.supervisor, self.pending, on_log)
        told = Returning(recorder, self._happened, self._adopted, self._ended)
        self.processes = Processes(
            runtime_dir, isolation, interpreter, lib,
            Sinks(told.happened, relay.died, told.adopted, told.ended, relay.output, relay.log, on_note))
        self.quiet, self.stopped, self.adopted = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.explanations = Explanations()
        self.ends, self.acceptances = Commits(), Commits()
        self._held, self._handed_out = False, asyncio.Event()
        self._write_ahead = WriteAhead(self.processes.run)
        self._loop = asyncio.get_running_loop()
        self._unacknowledged: dict[str, str] = {}
        self._recorder = recorder
        recorder.listen(self._loop, self)
        self._remembered = remembered
        self._on_rolled_back = on_rolled_back
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
            ef.Recycled: lambda effect: log.info("%s is replaced: %s", effect.worker, effect.why),
            ef.CancelRun: self._cancel,
            ef.EndSession: self._end_session,
            ef.VersionPromoted: self._promoted,
            ef.VersionRefused: self._refused,
            ef.RolledBack: self._rolled_back,
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
                    self._relay.black_boxes.forget(event.worker)
                if self._debug:
                    check(self.supervisor)
        except Exception as error:
            # half a turn was carried out: whoever called may not make light of it
            self._loop.call_exception_handler({"message": "the engine has a fault", "exception": error})
            raise
        finally:
            self._turning = False
        if not self.adopted.is_set() and not self.supervisor.adopts:
            self.adopted.set()
        self._arm()

    def now(self) -> float:
        """The supervisor's clock: monotonic seconds. uvloop moves its own once a turn, by milliseconds."""
        return time.monotonic()

    def turns(self) -> bool:
        """Whether an event that is fed is handled: what a watchdog wants to know."""
        self.feed(ev.TimePassed())
        return not self._waiting

    def start_run(self, event: ev.RunRequested, pending: Pending) -> None:
        """Accept a run. Its outcome comes through `pending.on_outcome`, perhaps before this returns.

        Raises OrpheusError: `overloaded` when the run log takes nothing, `draining` for a detached run while the
        daemon stops: the next one would execute it, whatever its caller was told.
        """
        if pending.detached and self.supervisor.stopping:
            raise OrpheusError("draining", "the daemon is stopping; try again when it is back")
        self._recorder.accepted(
            event.run, event.agent, event.session, pending.source, pending.caller, pending.payload,
            options_of(event) if pending.detached else None, pending.key, pending.on_event is not None)
        self.start_again(event, pending)

    def start_again(self, event: ev.RunRequested, pending: Pending) -> None:
        """Queue a run that is in the log already."""
        self.pending[event.run] = pending
        reached("run-accepted")
        self.feed(event)

    def busy(self, agent: str) -> bool:
        """Whether runs of the agent go on or wait."""
        known = self.supervisor.agents.get(agent)
        return known is not None and bool(known.going_on or known.waiting)

    def load(self, agent: str, version: int, settings: Settings, sessions: tuple[ev.Seen, ...],
             orphans: tuple[ev.Orphan, ...]) -> None:
        """Tell of an agent that was deployed when the last daemon ran, and of what that may have left."""
        unfinished = self._recorder.take_unfinished(agent, settings.timeout_s)
        self.adopted.clear()
        self.feed(ev.AgentLoaded(agent, version, settings, sessions, orphans, unfinished))

    def committed(self, run_ids: list[str]) -> None:
        """The ends of these runs are on the disk: their workers need not keep them, and whoever waits is told."""
        by_worker: dict[str, list[str]] = {}
        for run_id in run_ids:
            if (worker_id := self._unacknowledged.pop(run_id, None)) is not None:
                by_worker.setdefault(worker_id, []).append(run_id)
        for worker_id, ended in by_worker.items():
            self.processes.acknowledge(worker_id, ended)
        self.ends.committed(run_ids)

    def shut_down(self) -> None:
        """Take no more runs, and let everything go that has none."""
        self.feed(ev.ShutdownRequested())
        self._be_quiet()

    def cut_short(self) -> None:
        """Cancel every run that is left: nobody waits for it any longer."""
        for run_id in list(self.supervisor.runs):
            self.feed(ev.CancelRequested(run_id))

    async def hold(self, timeout_s: float) -> None:
        """Begin no detached run any more, and let nobody wait for the others: the next image of this daemon has all of
        them from the log and from the workers. Returns when workers have what they were told, or after `timeout_s`.
        """
        self._held = True
        for run_id, pending in list(self.pending.items()):
            if (run := self.supervisor.runs.get(run_id)) is None or pending.detached:
                continue
            self.pending[run_id] = pending._replace(on_outcome=lambda _outcome: None, on_event=None)
            pending.on_outcome(unawaited(run, self.now()))
            if run.worker is None:
                self.feed(ev.CancelRequested(run_id))
        self._handed_out.clear()
        if self._write_ahead.waits:
            await asyncio.wait([self._loop.create_task(self._handed_out.wait())], timeout=timeout_s)
        await self.processes.flush(timeout_s)

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
        if self._keeps_queued(effect.run, pending):
            return
        fields = {
            "run_id": effect.run, "session_id": effect.session, "context": effect.context, "turn": effect.turn,
            "timeout_s": effect.timeout_s, "stream": pending.on_event is not None,
            "note": {"source": pending.source, "caller": pending.caller, "at": time.time()},
        }  # fmt: skip
        reached("run-dispatching")
        hand_over = self._write_ahead.dispatch if pending.whole else self.processes.run
        hand_over(effect.worker, fields, pending.payload)
        reached("run-dispatched")
        worker = self.supervisor.pool.workers[effect.worker]
        self._recorder.started(effect, worker, pending.whole)
        if effect.session is not None and effect.context in ("new", "lost"):
            self._remembered.begun(worker.agent, effect.session, effect.turn - 1, effect.worker)

    def _cancel(self, effect: ef.CancelRun) -> None:
        if (pending := self.pending.get(effect.run)) is not None and self._keeps_queued(effect.run, pending):
            return
        if self._write_ahead.withdraw(effect.run):
            self._loop.call_soon(self._ended, effect.worker, never_began(effect.run, effect.reason))
        else:
            self.processes.cancel(effect.worker, effect.run, effect.reason)

    def _resolve(self, effect: ef.Resolve) -> None:
        pending = self.pending.pop(effect.run, None)
        if pending is not None and pending.whole and self._left_for_later(effect, pending):
            self.ends.never(effect.run)
            self._be_quiet()
            return
        message = self._ended_message
        said = message.payload if message is not None and message.fields["run_id"] == effect.run else b""
        error: dict[str, Any] = {}
        text = effect.message
        if effect.code and said:
            error = read_error(said)
            text = sentence(effect.code, error) or text
        if effect.state == "cancelled" and self.supervisor.stopping:
            text = STOPPING
        elif effect.state == "cancelled" and self._held:
            text = RELOADED
        black_box = self._relay.black_boxes.of(effect.worker, effect.cause) if effect.worker and effect.cause else {}
        outcome = Outcome(
            effect.run, effect.state, effect.code, text, b"" if effect.code else said, error, effect.worker,
            effect.session, effect.context, effect.turn, round(effect.duration_s * 1000, 3), effect.cause, effect.why,
            effect.retry_in_s, black_box)
        self._recorder.ended(outcome, pending.whole if pending is not None else self._recorder.found_whole(effect.run))
        self.explanations.keep(outcome)
        if effect.session is not None and effect.context is not None and effect.turn:
            self._remembered.seen(effect.agent, effect.session, effect.turn)
        if pending is not None and self._recorder.replies_wait and not pending.detached:
            self.ends.when(effect.run, partial(pending.reply, outcome))
        elif pending is not None:
            pending.on_outcome(outcome)
        reached("run-answered")
        self._be_quiet()

    def _be_quiet(self) -> None:
        if self.supervisor.stopping and not self.supervisor.runs:
            self.quiet.set()

    def _left_for_later(self, effect: ef.Resolve, pending: Pending) -> bool:
        """Whether a detached run that is over here stays `queued` in the log: the next daemon will execute it."""
        begun, draining = self._write_ahead.ended(effect.run), self.supervisor.stopping and effect.code == "draining"
        return pending.detached and not begun and (self._held or draining)

    def _keeps_queued(self, run_id: str, pending: Pending) -> bool:
        """Whether the run stays `queued` in the log, for the next image, whatever the supervisor makes of it here."""
        return self._held and pending.detached and not self._write_ahead.began(run_id)

    def _end_session(self, effect: ef.EndSession) -> None:
        self._remembered.ended(effect.agent, effect.session)
        reached("session-ended")
        if effect.worker is not None:
            self.processes.end_session(effect.worker, effect.session, effect.reason)

    def _promoted(self, effect: ef.VersionPromoted) -> None:
        log.info("%s: version %d serves", effect.agent, effect.version)
        self._decide(effect.request, "")

    def _refused(self, effect: ef.VersionRefused) -> None:
        log.warning("%s: version %d is refused: %s", effect.agent, effect.version, effect.message.partition("\n")[0])
        self._decide(effect.request, effect.message)

    def _rolled_back(self, effect: ef.RolledBack) -> None:
        log.error("%s: version %d keeps losing its workers and is rolled back, version %d serves again: %s",
                  effect.agent, effect.failed, effect.version, effect.reason.partition("\n")[0])
        self._on_rolled_back(effect)

    def _decide(self, request: str, error: str) -> None:
        if (future := self._verdicts.get(request)) is not None and not future.done():
            future.set_result(Verdict(error))

    # What the log tells

    def queued_written(self, run_ids: list[str]) -> None:
        self.acceptances.committed(run_ids)

    def started_written(self, run_ids: list[str]) -> None:
        self._write_ahead.written(run_ids)
        if not self._write_ahead.waits:
            self._handed_out.set()

    def log_failed(self) -> None:
        self.ends.failed()
        self.acceptances.failed()

    # What workers say

    def _happened(self, event: ev.Event) -> None:
        if isinstance(event, ev.WorkerExited):
            unread = self._write_ahead.unread(event.worker)
            event = event._replace(undelivered=event.undelivered | unread)
        self.feed(event)

    def _adopted(self, worker_id: str, sessions: list[Session], held: list[Message], states: dict[str, str]) -> None:
        """A worker that outlived the last daemon has told what it has, and the log what it knows of that."""
        worker = self.supervisor.pool.workers.get(worker_id)
        if worker is None:
            return
        found = self._recorder.adopted(worker, held, states)
        # also when there is nothing to acknowledge: it is how the worker knows that it was heard
        self.processes.acknowledge(worker_id, found.over)
        seen = tuple(ev.Seen(id, turns, idle_s, worker_id, saved) for id, turns, idle_s, saved in sessions)
        self.feed(ev.WorkerAdopted(worker_id, seen, found.runs))

    def _ended(self, worker_id: str, message: Message) -> None:
        message = believable(message)
        fields = message.fields
        run = self.supervisor.runs.get(fields["run_id"])
        if run is None or run.worker is None or run.worker.id != worker_id:
            # a letter from the dead: that run has its end, and nobody wants another
            self.processes.acknowledge(worker_id, [fields["run_id"]])
            return
        self._unacknowledged[run.id] = worker_id
        reached("run-ended")
        if fields["dropped_bytes"]:
            self._relay.dropped(worker_id, fields["run_id"], fields["dropped_bytes"])
        self._ended_message = message
        restored = fields["context"] == "restored"
        self.feed(ev.RunEnded(worker_id, run.id, fields["state"], fields["code"], restored, fields["saved"]))
        self._ended_message = None
