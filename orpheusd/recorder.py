"""Writes the story of every run into the run log, and reads it back for callers.

The engine tells it what happens in three calls that cost microseconds; everything slow is done by the log's own
thread, or in an executor. It decides nothing, but for one thing: a run that cannot be recorded is not accepted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple

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


class Adopted(NamedTuple):
    """What a worker that outlived a daemon holds: `runs` without an end in the log, and those `over` there."""

    runs: tuple[Unfinished, ...]
    over: list[str]


class Recorder:
    """Invariant: a run for which `accepted` returned is in the log, or will be before the log is closed."""

    def __init__(self, path: Path, settings: Settings) -> None:
        #: Gets the ids of runs whose end is on the disk, in the writer's thread. Set by whoever wants to know.
        self.on_committed: Callable[[list[str]], None] = lambda _run_ids: None
        self._log = RunLog.open(path, settings, self._committed, _failed)
        self._queries = RunQueries(path)
        damage = self._log.health()["damage"]
        if damage is not None:
            log.critical("the run log was damaged and put aside; a new one has begun: %s", damage)
        self._unfinished = {run.run_id: run for run in self._log.unfinished()}

    def accepted(
        self, run_id: str, agent: str, session_id: str | None, source: str, caller: str, input: bytes
    ) -> None:
        """Raises OrpheusError(overloaded) when the log takes nothing now: what cannot be recorded is not executed."""
        if not self._log.queued(Queued(run_id, agent, session_id, source, caller, time.time(), input)):
            problem = self._log.problem or "the disk does not keep up"
            raise OrpheusError("overloaded", f"runs cannot be recorded now ({problem}), so none is started; "
                                             "`orpheusctl status` says more")

    def started(self, effect: Dispatch, worker: Worker) -> None:
        self._log.started(Started(
            effect.run, worker.version, effect.worker, effect.context, effect.turn, time.time()))

    def ended(self, outcome: Outcome) -> None:
        error = outcome.error
        self._log.ended(Ended(
            outcome.run_id, outcome.state, outcome.code, time.time(), int(outcome.duration_ms * 1000),
            result=outcome.result or None, error_type=error.get("type"),
            error_message=outcome.message or None, traceback=error.get("traceback"),
            exit_cause=outcome.cause or None, context=outcome.context, turn=outcome.turn))

    async def find(self, query: RunQuery) -> list[dict[str, Any]]:
        return [_row(run) for run in await asyncio.to_thread(self._queries.find, query)]

    async def show(self, run_id: str) -> dict[str, Any]:
        """Everything the log has about one run. Raises OrpheusError(not-found)."""
        detail = await asyncio.to_thread(self._queries.show, run_id)
        if detail is None:
            raise OrpheusError("not-found", f"the run log has no run {run_id}; it may be too old, or have just begun")
        return _detail(detail)

    def health(self) -> dict[str, Any]:
        return self._log.health()

    def close(self, timeout_s: float) -> None:
        if not self._log.close(timeout_s):
            log.error("the run log could not be written to its end within %g s", timeout_s)

    def take_unfinished(self, agent: str, timeout_s: float) -> tuple[Unfinished, ...]:
        """The agent's runs that the log has no end of. The caller answers for each from now on."""
        return tuple(
            Unfinished(run.run_id, run.session_id, run.context, run.worker_id, timeout_s)
            for run in self._unfinished.values() if run.agent == agent)

    def _committed(self, run_ids: list[str]) -> None:
        self.on_committed(run_ids)

    def give_up_unfinished(self, agents: Container[str]) -> None:
        """Nobody will hear of the runs of agents that are not among these."""
        for run in self._unfinished.values():
            if run.agent not in agents:
                self._log.ended(Ended(run.run_id, "crashed", "worker-crashed", time.time(), 0,
                                      error_message=_ORPHANED.format(state=run.state)))

    def adopted(self, worker: Worker, held: list[Message]) -> Adopted:
        """`worker` still has these runs. What the log does not know of them is written now: the last daemon may have
        died before it could."""
        states = self._queries.states([message.fields["run_id"] for message in held])
        runs: list[Unfinished] = []
        over: list[str] = []
        for message in held:
            fields = message.fields
            run_id = fields["run_id"]
            known = self._unfinished.get(run_id)
            if states.get(run_id, "queued") not in UNFINISHED or (known is not None and known.agent != worker.agent):
                over.append(run_id)
                continue
            self._write_again(worker, message, states.get(run_id))
            left_s = max(0.0, (fields["timeout_s"] or 0.0) - fields["elapsed_s"])
            runs.append(Unfinished(
                run_id, fields["session_id"], fields["context"], worker.id, left_s, fields["over"]))
        return Adopted(tuple(runs), over)

    def _write_again(self, worker: Worker, message: Message, state: str | None) -> None:
        fields, note = message.fields, message.fields["note"]
        at = note.get("at")
        started_at = at if isinstance(at, float) else time.time()
        if state is None:
            self._log.queued(Queued(
                fields["run_id"], worker.agent, fields["session_id"], str(note.get("source")), str(note.get("caller")),
                started_at, message.payload))
        if state != "started":
            self._log.started(Started(
                fields["run_id"], worker.version, worker.id, fields["context"], fields["turn"], started_at))


def _failed(problem: str) -> None:
    log.critical("the run log has failed for good: %s; no more runs are accepted", problem)


def _row(run: Run) -> dict[str, Any]:
    """One row as both doors show it."""
    row = run._asdict()
    row["duration_ms"] = None if run.duration_us is None else run.duration_us / 1000
    del row["duration_us"]
    return row


def _detail(detail: RunDetail) -> dict[str, Any]:
    return {**_row(detail.run), "traceback": detail.traceback, "damaged": detail.damaged,
            "input": _json(detail.input, detail.run.input_truncated),
            "result": _json(detail.result, detail.run.result_truncated)}  # fmt: skip


def _json(payload: bytes | None, truncated: bool) -> Any:
    """The payload as JSON; one that was cut, as the text that is left of it."""
    if payload is None:
        return None
    if truncated:
        return payload.decode(errors="replace")
    return orjson.Fragment(payload)
