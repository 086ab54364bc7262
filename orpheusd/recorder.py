"""Writes the story of every run into the run log, and reads it back for callers.

The engine tells it what happens in three calls that cost microseconds; everything slow is done by the log's own
thread, or in an executor. It decides nothing, but for one thing: a run that cannot be recorded is not accepted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from orpheusd.core.effects import Dispatch
from orpheusd.core.events import Unfinished
from orpheusd.core.worker import Worker
from orpheusd.errors import OrpheusError
from orpheusd.outcome import Outcome
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.queries import RunQueries, RunQuery
from orpheusd.runlog.rows import Ended, Queued, Run, RunDetail, Started
from orpheusd.runlog.schema import UNFINISHED
from orpheusd.runlog.settings import Settings
from orpheusd.wire.worker import Message

log = logging.getLogger(__name__)

_ORPHANED = "the daemon ended while this run was {state}, and its agent is not deployed any more"


class Key(NamedTuple):
    """A caller's name for a request, and a fingerprint of what was asked under it."""

    name: str
    fingerprint: str


class Adopted(NamedTuple):
    """What a worker that outlived a daemon holds: `runs` without an end in the log, and those `over` there."""

    runs: tuple[Unfinished, ...]
    over: list[str]


class Listener(Protocol):
    """Who is told what the disk has: the ends of runs, and what stands before them when somebody waits for that."""

    def committed(self, run_ids: list[str]) -> None: ...

    def queued_written(self, run_ids: list[str]) -> None: ...

    def started_written(self, run_ids: list[str]) -> None: ...

    def log_failed(self) -> None: ...


class Recorder:
    """Invariant: a run for which `accepted` returned is in the log, or will be before the log is closed.

    `_unfinished` are the runs of earlier daemons without an end, `_settled` those that this one has ended.
    `replies_wait`: an answer is given when the disk has it. `accepted_before` are detached runs that an earlier daemon
    accepted and never started, in order. `on_failure` gets the reason, in the log's thread, when the log fails for
    good and that can not be so any more.
    """

    def __init__(self, path: Path, settings: Settings, on_failure: Callable[[str], None]) -> None:
        self.replies_wait = settings.durability == "disk"
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_failure = on_failure
        self._log = RunLog.open(
            path, settings,
            lambda run_ids: self._tell(lambda listener: listener.committed(run_ids)), self._failed,
            lambda run_ids: self._tell(lambda listener: listener.queued_written(run_ids)),
            lambda run_ids: self._tell(lambda listener: listener.started_written(run_ids)))
        self._queries = RunQueries(path)
        damage = self._log.health()["damage"]
        if damage is not None:
            log.critical("the run log was damaged and put aside; a new one has begun: %s", damage)
        left = self._log.unfinished()
        self.accepted_before = [one for one in left if one.run.detached and one.run.state == "queued"]
        again = {one.run.run_id for one in self.accepted_before}
        self._unfinished = {one.run.run_id: one for one in left if one.run.run_id not in again}
        self._settled: set[str] = set()

    def listen(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        """From now on `listener` is told, in `loop`."""
        self._loop, self._listener = loop, listener

    def accepted(
        self, run_id: str, agent: str, session_id: str | None, source: str, caller: str, input: bytes,
        options: str | None = None, key: Key | None = None, announced: bool = False,
    ) -> None:  # fmt: skip
        """`options` makes it a detached run; `announced`: the listener is told when it is written.

        Raises OrpheusError(overloaded) when the log takes nothing now: what cannot be recorded is not executed.
        """
        name, fingerprint = key if key is not None else (None, None)
        if not self._log.queued(Queued(run_id, agent, session_id, source, caller, time.time(), input, None,
                                       options is not None, options, name, fingerprint, announced)):
            problem = self._log.problem or "the disk does not keep up"
            raise OrpheusError("overloaded", f"runs cannot be recorded now ({problem}), so none is started; "
                                             "`orpheusctl status` says more")

    def started(self, effect: Dispatch, worker: Worker, urgent: bool = False) -> None:
        """`urgent`: the worker gets the run once this is written."""
        self._log.started(Started(
            effect.run, worker.version, effect.worker, effect.context, effect.turn, time.time()), urgent)

    def ended(self, outcome: Outcome, whole: bool = False) -> None:
        """`whole`: its result is kept whatever is said of capturing, because somebody may ask for it."""
        self._settle(outcome.run_id)
        error = outcome.error
        self._log.ended(Ended(
            outcome.run_id, outcome.state, outcome.code, time.time(), round(outcome.duration_ms * 1000),
            result=outcome.result or None, error_type=error.get("type"),
            error_message=outcome.message or None, traceback=error.get("traceback"),
            exit_cause=outcome.cause or None, context=outcome.context,
            turn=outcome.turn if outcome.turn or outcome.context is None else None,
            whole=whole, black_box=orjson.dumps(outcome.black_box).decode() if outcome.black_box else None))

    async def find(self, query: RunQuery) -> list[dict[str, Any]]:
        return [_row(run) for run in await asyncio.to_thread(self._queries.find, query)]

    async def detail(self, run_id: str) -> RunDetail | None:
        """Everything the log has about one run, None when it does not have it."""
        return await asyncio.to_thread(self._queries.show, run_id)

    async def asked(self, agent: str, name: str, since: float) -> RunDetail | None:
        """The run that was executed for this agent under the idempotency key `name`, not before `since`."""
        return await asyncio.to_thread(self._queries.asked, agent, name, since)

    def inputs(self, run_ids: list[str]) -> dict[str, bytes]:
        """What was kept of the inputs of these runs. For the start: it waits."""
        return self._queries.inputs(run_ids)

    def pending_bytes(self) -> int:
        """What is not on the disk yet."""
        return self._log.pending_bytes

    def health(self) -> dict[str, Any]:
        return self._log.health()

    def problems(self) -> list[str]:
        return self._log.problems()

    def close(self, timeout_s: float) -> None:
        if not self._log.close(timeout_s):
            log.error("the run log could not be written to its end within %g s", timeout_s)

    def take_unfinished(self, agent: str, timeout_s: float) -> tuple[Unfinished, ...]:
        """The agent's runs that the log has no end of, and the time that each may take, `timeout_s` if it has none of
        its own. The caller answers for each from now on."""
        now = time.time()
        return tuple(
            Unfinished(run.run_id, run.session_id, run.context, run.worker_id, _own_timeout_s(left) or timeout_s,
                       elapsed_s=max(0.0, now - (run.started_at or now)))
            for left in self._unfinished.values() if (run := left.run).agent == agent)

    def found_whole(self, run_id: str) -> bool:
        """Whether somebody may ask for the whole result of a run that an earlier daemon accepted."""
        found = self._unfinished.get(run_id)
        return found is not None and (found.run.detached or found.idempotency_key is not None)

    def _found(self) -> Iterator[Run]:
        return (left.run for left in self._unfinished.values())

    def give_up_unfinished(self, agents: Container[str]) -> None:
        """Nobody will hear of the runs of agents that are not among these."""
        for run in list(self._found()):
            if run.agent not in agents:
                self._settle(run.run_id)
                self._log.ended(Ended(run.run_id, "crashed", "worker-crashed", time.time(), 0,
                                      error_message=_ORPHANED.format(state=run.state)))

    def unknown(self, held: list[Message]) -> list[str]:
        """Those of the runs that a worker holds about which `states` must be asked: the log may have their end."""
        run_ids = [message.fields["run_id"] for message in held]
        return [id for id in run_ids if id not in self._unfinished and id not in self._settled]

    async def states(self, run_ids: list[str]) -> dict[str, str]:
        """The state of each of these runs that the log has. Raises OrpheusError when it does not answer."""
        return await asyncio.to_thread(self._queries.states, run_ids)

    def adopted(self, worker: Worker, held: list[Message], states: dict[str, str]) -> Adopted:
        """`worker` still has these runs; `states` has those of the `unknown` ones. What the log does not know of them
        is written now: the last daemon may have died before it could."""
        runs: list[Unfinished] = []
        over: list[str] = []
        for message in held:
            fields = message.fields
            run_id = fields["run_id"]
            known = self._unfinished.get(run_id)
            state = states.get(run_id) if known is None else known.run.state
            if run_id in self._settled or (state is not None and state not in UNFINISHED) or (
                    known is not None and known.run.agent != worker.agent):
                over.append(run_id)
                continue
            self._write_again(worker, message, state)
            left_s = max(0.0, (fields["timeout_s"] or 0.0) - fields["elapsed_s"])
            runs.append(Unfinished(run_id, fields["session_id"], fields["context"], worker.id, left_s, fields["over"],
                                   max(0.0, fields["elapsed_s"])))
        return Adopted(tuple(runs), over)

    def _settle(self, run_id: str) -> None:
        """This daemon has written the end of a run that an earlier one left."""
        if self._unfinished.pop(run_id, None) is not None:
            self._settled.add(run_id)

    def _write_again(self, worker: Worker, message: Message, state: str | None) -> None:
        fields, note = message.fields, message.fields["note"]
        at = note.get("at")
        started_at = at if isinstance(at, float) else time.time()
        if state is None:
            self._log.found(Queued(
                fields["run_id"], worker.agent, fields["session_id"], str(note.get("source")), str(note.get("caller")),
                started_at, message.payload or None))
        if state != "started":
            self._log.started(Started(
                fields["run_id"], worker.version, worker.id, fields["context"], fields["turn"], started_at))

    def _tell(self, say: Callable[[Listener], None]) -> None:
        """In the writer's thread: have the loop say it."""
        if self._loop is None or self._listener is None:
            return
        try:
            self._loop.call_soon_threadsafe(say, self._listener)
        except RuntimeError:
            # the loop is closed: nobody is left who waits
            pass

    def _failed(self, problem: str) -> None:
        self._tell(lambda listener: listener.log_failed())
        self._on_failure(problem)


def _own_timeout_s(left: RunDetail) -> float | None:
    return orjson.loads(left.options or "{}").get("timeout_s")  # type: ignore[no-any-return]


def _row(run: Run) -> dict[str, Any]:
    """One row as both doors show it."""
    row = run._asdict()
    row["duration_ms"] = None if run.duration_us is None else run.duration_us / 1000
    del row["duration_us"]
    return row


def described(detail: RunDetail) -> dict[str, Any]:
    """One run as both doors show it."""
    return {**_row(detail.run), "traceback": detail.traceback, "damaged": detail.damaged,
            "idempotency_key": detail.idempotency_key,
            "black_box": None if detail.black_box is None else orjson.Fragment(detail.black_box),
            "input": _json(detail.input, detail.run.input_truncated),
            "result": _json(detail.result, detail.run.result_truncated)}  # fmt: skip


def _json(payload: bytes | None, truncated: bool) -> Any:
    """The payload as JSON; one that was cut, as the text that is left of it."""
    if payload is None:
        return None
    if truncated:
        return payload.decode(errors="replace")
    return orjson.Fragment(payload)
