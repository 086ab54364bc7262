"""Detached runs: accepted for a caller who does not wait, so that the log knows of each step before it is taken.

The `queued` row is on the disk before the caller is told that the run is accepted, and the `started` row before a
worker gets it. So a row that is still `queued` after a kill was certainly never executed, and a later daemon queues
it again; one that is `started` may have been, and never is. A run with an idempotency key is handed over in the same
way, whether its caller waits or not: who asks again after a kill must be led to it. What is said to callers is not
this file's business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from orpheusd.core.events import RunRequested
from orpheusd.runlog.rows import RunDetail
from orpheusd.wire.worker import Message

#: How a run is handed to a worker: the worker's id, the fields of the message and the input.
HandOver = Callable[[str, dict[str, Any], bytes], None]


class Handing(NamedTuple):
    """A run on its way to a worker."""

    worker: str
    fields: dict[str, Any]
    payload: bytes


class WriteAhead:
    """Hands runs over, each when its start is on the disk.

    Invariant: `_held` are runs that the supervisor has put on a living worker and no worker has got; `_begun` are
    those under way whose start the log was told of, each with whether it is on the disk.
    """

    def __init__(self, hand_over: HandOver) -> None:
        self._hand_over = hand_over
        self._held: dict[str, Handing] = {}
        self._begun: dict[str, bool] = {}

    def dispatch(self, worker: str, fields: dict[str, Any], payload: bytes) -> None:
        """Hand the run over once its start is written, which the caller must see to.

        At once for one whose start was written already: its worker died without having read it.
        """
        run_id = fields["run_id"]
        if self._begun.setdefault(run_id, False):
            self._hand_over(worker, fields, payload)
        else:
            self._held[run_id] = Handing(worker, fields, payload)

    def written(self, run_ids: list[str]) -> None:
        """The log has the start of these runs."""
        for run_id in run_ids:
            if run_id in self._begun:
                self._begun[run_id] = True
            handing = self._held.pop(run_id, None)
            if handing is not None:
                self._hand_over(*handing)

    def withdraw(self, run_id: str) -> bool:
        """Do not hand this run over. False when it is not held: its worker has it."""
        return self._held.pop(run_id, None) is not None

    def unread(self, worker: str) -> frozenset[str]:
        """What a worker that has died never got; it is held no more."""
        lost = frozenset(run_id for run_id, handing in self._held.items() if handing.worker == worker)
        for run_id in lost:
            del self._held[run_id]
        return lost

    def began(self, run_id: str) -> bool:
        """Whether the log was told that this run starts."""
        return run_id in self._begun

    @property
    def waits(self) -> bool:
        """Whether a run is on its way whose start is not written yet."""
        return bool(self._held)

    def ended(self, run_id: str) -> bool:
        """Forget the run. Whether the log was ever told that it has started."""
        self._held.pop(run_id, None)
        return self._begun.pop(run_id, None) is not None


def never_began(run_id: str, reason: str) -> Message:
    """What a worker would say of a run that was stopped before it got it. `reason` is `cancelled` or `timed-out`."""
    said = {"message": f"{reason} before a worker began it"}
    fields = {"run_id": run_id, "state": reason, "code": reason, "duration_us": 0, "dropped_bytes": 0, "context": None,
              "saved": False}  # fmt: skip
    return Message("ended", fields, orjson.dumps(said))


def options_of(event: RunRequested) -> str:
    """What a later daemon needs to queue the run again, besides what its row says anyway."""
    options = {"affinity": event.affinity, "overlap": event.overlap, "require_warm": event.require_warm,
               "timeout_s": event.timeout_s}  # fmt: skip
    return orjson.dumps({name: value for name, value in options.items() if value}).decode()


def requested_again(left: RunDetail) -> RunRequested:
    """The request of a run that an earlier daemon accepted and never started."""
    options = orjson.loads(left.options or "{}")
    return RunRequested(
        left.run.run_id, left.run.agent, left.run.session_id, options.get("affinity"), options.get("overlap"),
        options.get("require_warm", False), options.get("timeout_s"), readmitted=True,
        input_bytes=left.run.input_bytes)
