"""The run log as the daemon sees it: three calls that cost a microsecond, and facts about its health.

It belongs to the event loop's thread. What it is told goes to the writer; what became of it comes back through the
callbacks, in the writer's thread.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpheusd.runlog import recovery
from orpheusd.runlog.handover import Handover
from orpheusd.runlog.place import reserve_of
from orpheusd.runlog.reserve import Reserve
from orpheusd.runlog.rows import Ended, Queued, RunDetail, Started, payload_bytes
from orpheusd.runlog.settings import Settings
from orpheusd.runlog.writer import State, Writer


class RunLog:
    """Invariant: a run for which `queued` returned True is written, or `accepting` is False and stays so.

    `on_committed` gets the ids of runs whose end is on the disk, `on_queued` those of runs that are queued there and
    `awaited`, `on_started` those of runs kept `whole` that have started there, `on_failure` what went wrong for good;
    all in the writer's thread, and none may raise.
    """

    def __init__(self, path: Path, settings: Settings, recovered: recovery.Recovered, writer: Writer,
                 handover: Handover) -> None:
        self.path = path
        self.settings = settings
        self._recovered = recovered
        self._writer = writer
        self._handover = handover
        self._closed = False
        self._dropped = 0
        self._unfinished = list(recovered.unfinished)

    @classmethod
    def open(
        cls, path: Path, settings: Settings, on_committed: Callable[[list[str]], None],
        on_failure: Callable[[str], None], on_queued: Callable[[list[str]], None] | None = None,
        on_started: Callable[[list[str]], None] | None = None,
    ) -> "RunLog":  # fmt: skip
        """Raises OrpheusError when there can be no log at `path`. A damaged one is put aside: see `health`."""
        recovered = recovery.recover(path, settings)
        handover = Handover(settings.batch_rows)
        reserve = Reserve(reserve_of(path), settings.reserve_bytes)
        writer = Writer(recovered.store, handover, settings, reserve,
                        on_committed, on_failure, on_queued, on_started)
        log = cls(path, settings, recovered, writer, handover)
        writer.start()
        return log

    @property
    def accepting(self) -> bool:
        """Whether a new run may begin: the disk keeps up, and nothing is wrong with it."""
        return (self._writer.state is State.OPEN and not self._closed
                and self._handover.room(self.settings.pending_changes, self.settings.pending_bytes))

    @property
    def pending_bytes(self) -> int:
        """Inputs and results that were taken and are not on the disk yet."""
        return self._handover.pending_bytes

    @property
    def problem(self) -> str:
        """Why it is not `accepting`, in a few words, at no cost; "" when nothing is wrong."""
        if self.accepting:
            return ""
        return self._writer.problem or ("it is closed" if self._closed else "the disk does not keep up")

    def queued(self, row: Queued) -> bool:
        """A run was accepted. False, and nothing is taken, while the log is not `accepting`: refuse the run."""
        if not self.accepting:
            return False
        self.found(row)
        return True

    def found(self, row: Queued) -> None:
        """A run is under way that an earlier daemon accepted, and did not write. Always taken."""
        if not row.whole:
            input, size_bytes = self._kept(row.input, row.input_bytes, self.settings.input_limit_bytes)
            row = row if input is row.input else row._replace(input=input, input_bytes=size_bytes)
        self._put(row, payload_bytes(row), row.awaited)

    def started(self, row: Started, urgent: bool = False) -> None:
        """The run was handed to a worker, or will be once this is written (`urgent`). Always taken: only accepted runs
        start.
        """
        self._put(row, 0, urgent)

    def ended(self, row: Ended) -> None:
        """The run is over. Always taken, and safe to say again: the first end stands, and is acknowledged again."""
        if not row.whole:
            result, size_bytes = self._kept(row.result, row.result_bytes, self.settings.result_limit_bytes)
            row = row if result is row.result else row._replace(result=result, result_bytes=size_bytes)
        self._put(row, payload_bytes(row))

    def unfinished(self) -> list[RunDetail]:
        """Runs that an earlier daemon left without an end, in order and without payloads, which `RunQueries` reads.

        The caller settles each with `ended`, sooner or later.
        """
        return self._unfinished

    def health(self) -> dict[str, Any]:
        """What `status` says of the log. `damage` is about the log that this one replaced at start."""
        writer, damage = self._writer, self._recovered.damage
        return {
            "state": writer.state.value,
            "accepting": self.accepting,
            "problem": writer.problem,
            "path": str(self.path),
            "rows": writer.row_count,
            "used_bytes": writer.used_bytes,
            "pending_changes": self._handover.pending_changes,
            "pending_bytes": self._handover.pending_bytes,
            "commits": writer.commits,
            "refused_changes": writer.refused + self._dropped,
            "last_refusal": writer.last_refusal,
            "checked": "whole" if self._recovered.whole else "newest runs",
            "note": self._recovered.note,
            "damage": damage._asdict() if damage is not None else None,
            "damaged_copies": recovery.damaged_copies(self.path),
        }

    def problems(self) -> list[str]:
        """A sentence for each thing that somebody should look at; what was put aside, until it is removed."""
        damage, copies = self._recovered.damage, recovery.damaged_copies(self.path)
        found = [f"new runs are refused: {self.problem}"] if self.problem else []
        if damage is not None:
            found.append(f"the run log was found damaged at this start ({damage.reason}) and put aside as "
                         f"{damage.kept_as}; runs before that are not in it any more")
        elif copies:
            found.append(f"a damaged run log was put aside at an earlier start, with the runs until then: "
                         f"{', '.join(copies)} beside {self.path}; remove what you do not need")
        return found

    def close(self, timeout_s: float) -> bool:
        """Write down what is pending. False when the disk did not take all of it within `timeout_s` seconds."""
        self._closed = True
        flushed = self._writer.close(timeout_s)
        if self._writer.stopped:
            self._handover.close()
        return flushed

    def _kept(
        self, payload: bytes | None, size_bytes: int | None, limit_bytes: int
    ) -> tuple[bytes | None, int | None]:
        """What is stored of a payload that need not be whole, and its size. `size_bytes` is what was said of that."""
        if payload is None or (self.settings.capture and len(payload) <= limit_bytes):
            return payload, size_bytes
        return (payload[:limit_bytes] if self.settings.capture else None,
                len(payload) if size_bytes is None else size_bytes)

    def _put(self, row: Queued | Started | Ended, size_bytes: int, urgent: bool = False) -> None:
        if self._closed or self._writer.state is State.FAILED:
            # Nobody writes any more; the workers still hold what they were not acknowledged.
            self._dropped += 1
            return
        self._handover.put(row, size_bytes, urgent)
