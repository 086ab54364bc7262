"""Writes the story of every run into the run log, and reads it back for callers.

The engine tells it what happens in three calls that cost microseconds; everything slow is done by the log's own
thread, or in an executor. It decides nothing, but for one thing: a run that cannot be recorded is not accepted.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from orpheusd.core.effects import Dispatch
from orpheusd.core.worker import Worker
from orpheusd.errors import OrpheusError
from orpheusd.outcome import Outcome
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.queries import RunQueries, RunQuery
from orpheusd.runlog.rows import Ended, Queued, Run, RunDetail, Started
from orpheusd.runlog.settings import Settings

log = logging.getLogger(__name__)

#: Runs that an earlier daemon left unfinished have died with its workers, which do not outlive it yet.
_ORPHANED = "the daemon ended while this run was {state}"


class Recorder:
    """Invariant: a run for which `accepted` returned is in the log, or will be before the log is closed.

    `on_failure` gets the reason, in the log's thread, when the log fails for good and that can not be so any more.
    """

    def __init__(self, path: Path, settings: Settings, on_failure: Callable[[str], None]) -> None:
        self._log = RunLog.open(path, settings, lambda _run_ids: None, on_failure)
        self._queries = RunQueries(path)
        damage = self._log.health()["damage"]
        if damage is not None:
            log.critical("the run log was damaged and put aside; a new one has begun: %s", damage)
        self._settle_unfinished()

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

    def problems(self) -> list[str]:
        return self._log.problems()

    def close(self, timeout_s: float) -> None:
        if not self._log.close(timeout_s):
            log.error("the run log could not be written to its end within %g s", timeout_s)

    def _settle_unfinished(self) -> None:
        for run in self._log.unfinished():
            self._log.ended(Ended(run.run_id, "crashed", "worker-crashed", time.time(), 0,
                                  error_message=_ORPHANED.format(state=run.state)))


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
