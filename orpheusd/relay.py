"""What workers print and emit, passed on: to the agent's log, to the black box, and to a caller who streams.

It believes a worker only about the run that it really executes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from orpheusd.blackbox import BlackBoxes
from orpheusd.core.supervisor import Supervisor
from orpheusd.operations import COUNT_LIMIT
from orpheusd.pending import Pending
from orpheusd.process.remains import Remains
from orpheusd.said import is_json
from orpheusd.wire.worker import Message

#: Of a dead worker's stack this much goes into the agent's log; the record of its run has all of it.
STACK_LINES = 200


class Relay:
    """Keeps nothing but the black boxes. `pending` are the runs whose callers wait, by id."""

    def __init__(
        self, supervisor: Supervisor, pending: Mapping[str, Pending], on_log: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.black_boxes = BlackBoxes()
        self._supervisor = supervisor
        self._pending = pending
        self._on_log = on_log

    def died(self, worker_id: str, remains: Remains) -> None:
        """Its death follows as an event. Where it was is told in the log too, where others look first."""
        self.black_boxes.died(worker_id, remains)
        for text in remains.stack.splitlines()[:STACK_LINES]:
            self.log(worker_id, Message("log", {
                "run_id": None, "session_id": None, "stream": "stderr", "text": text, "dropped_bytes": 0}), True)

    def output(self, worker_id: str, message: Message) -> None:
        pending, seq = self._pending_on(worker_id, message.fields["run_id"]), message.fields["seq"]
        if (pending is not None and pending.on_event is not None and 0 <= seq <= COUNT_LIMIT
                and is_json(message.payload)):
            # in this order, in which a front door finds the data without decoding it
            pending.on_event("output", {"data": orjson.Fragment(message.payload), "seq": seq})

    def log(self, worker_id: str, message: Message, past_python: bool) -> None:
        worker = self._supervisor.pool.workers.get(worker_id)
        if worker is None:
            return
        fields = message.fields
        run_id, session_id = fields["run_id"], fields["session_id"]
        if past_python and len(worker.runs) == 1:
            # by a program it started, or C code: the one run that is going on, as far as anybody can tell
            run = next(iter(worker.runs.values()))
            run_id, session_id = run.id, run.session
        row = {"worker_id": worker_id, "run_id": run_id, "session_id": session_id, "stream": fields["stream"],
               "text": fields["text"]}  # fmt: skip
        if fields["dropped_bytes"]:
            row["dropped_bytes"] = fields["dropped_bytes"]
        self._on_log(worker.agent, row)
        self.black_boxes.line(worker_id, row["stream"], row["text"])
        pending = self._pending_on(worker_id, run_id) if run_id is not None else None
        if pending is not None and pending.on_event is not None:
            pending.on_event("log", {"data": {"stream": row["stream"], "text": row["text"]}})

    def dropped(self, worker_id: str, run_id: str, dropped_bytes: int) -> None:
        """A run printed more than is kept: say so where its output is read."""
        run = self._supervisor.runs.get(run_id)
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
        run = self._supervisor.runs.get(run_id)
        if run is None or run.worker is None or run.worker.id != worker_id:
            return None
        return self._pending.get(run_id)
