"""The writer: the one thread that owns the read-write connection. It commits in groups and survives a full disk.

It decides what a failure of the disk means. Full or locked: keep what is pending, refuse new runs, try again, go on.
Anything else: stop at once, acknowledge nothing more, say so; a failed write or fsync is never retried, because the
kernel may have forgotten the data and call the next fsync a success.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from enum import Enum

from orpheusd.runlog.batch import Batch
from orpheusd.runlog.handover import Handover
from orpheusd.runlog.reserve import Reserve, disk_is_full
from orpheusd.runlog.settings import Settings
from orpheusd.runlog.store import Store
from orpheusd.runlog.upkeep import Upkeep

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CONTENT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class State(Enum):
    """How the log is."""

    OPEN = "ok"
    FULL = "disk-full"  # new runs are refused until there is space
    BUSY = "locked"  # somebody holds a lock on the database
    FAILED = "failed"  # the disk failed or the files are damaged; the daemon must end
    CLOSED = "closed"


class Writer:
    """Invariant: a run's end is acknowledged after the commit that holds it, and nothing is after a failure.

    `state`, `problem` and the counts are written by the writer's thread and may be read by any.
    """

    def __init__(
        self, store: Store, handover: Handover, settings: Settings, reserve: Reserve,
        on_committed: Callable[[list[str]], None], on_failure: Callable[[str], None],
        on_queued: Callable[[list[str]], None] | None, on_started: Callable[[list[str]], None] | None,
    ) -> None:  # fmt: skip
        self.state = State.OPEN if reserve.take() else State.FULL
        self.problem = "" if self.state is State.OPEN else "the disk is full"
        self.commits = 0
        self.refused = 0
        self.last_refusal = ""
        self._store = store
        self._handover = handover
        self._settings = settings
        self._reserve = reserve
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._on_queued = on_queued
        self._on_started = on_started
        self._upkeep = Upkeep(store, settings)
        self._linger_s = settings.linger_s if settings.durability == "os" else 0.0
        self._batch = self._empty_batch()
        self._retry_at = 0.0
        self._close_by: float | None = None
        self._thread = threading.Thread(target=self._run, name="run log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Write down what is pending, and stop. False when that did not work in time; the rest is then lost."""
        if self._close_by is None:
            self._close_by = time.monotonic() + timeout_s
        self._handover.hurry()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self.state is State.CLOSED and not self._handover.pending_changes

    @property
    def stopped(self) -> bool:
        return not self._thread.is_alive()

    @property
    def used_bytes(self) -> int:
        return self._upkeep.used_bytes

    @property
    def row_count(self) -> int:
        return self._store.head.row_count

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn()
        except Exception as error:
            # Whatever it is, a log that stopped must not look alive.
            self._fail(error)
        else:
            self._close()

    def _finished(self) -> bool:
        if self._close_by is None:
            return False
        # Asked in this order: what was put before the close is seen.
        idle = not self._batch.change_count and not len(self._handover)
        return idle or time.monotonic() >= self._close_by

    def _turn(self) -> None:
        if not self._batch.change_count:
            self._gather()
        if self._batch.change_count or self.state is not State.OPEN:
            self._try(self._commit)
        if self.state is State.OPEN:
            self._try(self._upkeep.run)

    def _gather(self) -> None:
        """Wait for the first change and for those that come with it; an empty batch means that a chore is due."""
        handover, closing = self._handover, self._close_by is not None
        if not len(handover) and not closing:
            handover.wait(self._upkeep.due_s() if self.state is State.OPEN else self._settings.retry_s)
        if self._linger_s and len(handover) and not closing:
            handover.linger(self._linger_s)
        handover.take(self._batch)

    def _try(self, step: Callable[[], None]) -> None:
        """Carry out the step; when the disk is full or the database locked, wait a little instead."""
        try:
            step()
        except sqlite3.Error as error:
            if disk_is_full(error):
                self._now(State.FULL, f"the disk is full ({error})")
                if self._reserve.held:
                    # What it held back is for this: try at once.
                    self._reserve.give_up()
                    return
            elif getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
                self._now(State.BUSY, f"somebody else holds a lock on the database ({error})")
            else:
                raise
            self._wait_before_retry()

    def _commit(self) -> None:
        batch = self._batch
        if batch.change_count:
            written = self._store.write(batch)
            self._upkeep.committed()
            self._batch = self._empty_batch()
            self._handover.done(batch)
            self.commits += 1
            if written.refusals:
                self.refused += len(written.refusals)
                self.last_refusal = written.refusals[-1]
            if written.queued and self._on_queued is not None:
                self._on_queued(written.queued)
            if written.started and self._on_started is not None:
                self._on_started(written.started)
            if written.ended:
                self._on_committed(written.ended)
        if self.state is not State.FULL or self._reserve.take():
            self._now(State.OPEN, "")

    def _wait_before_retry(self) -> None:
        """Give the disk some time. What is put meanwhile wakes us early once at most; closing does at once."""
        until = time.monotonic() + self._settings.retry_s
        if self._close_by is not None:
            until = min(until, self._close_by)
        while (left := until - time.monotonic()) > 0:
            closing = self._close_by is not None
            self._handover.wait(left)
            if not closing and self._close_by is not None:
                return

    def _now(self, state: State, problem: str) -> None:
        self.problem = problem
        self.state = state

    def _empty_batch(self) -> Batch:
        return Batch(self._settings.batch_rows, self._settings.batch_bytes)

    def _fail(self, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}"
        self._now(State.FAILED, problem)
        try:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _CONTENT:
                self._store.mark.condemn()
            self._store.abandon()
        except (OSError, sqlite3.Error):
            # The disk has failed already; there is no more to say than that.
            pass
        finally:
            self._on_failure(problem)

    def _close(self) -> None:
        try:
            self._store.close()
        except sqlite3.Error as error:
            # The commits are safe in the WAL. Only a checkpoint did not work.
            self.problem = f"closed without a checkpoint ({error})"
        except OSError as error:
            self.problem = f"closed without syncing the mark ({error})"
        self._reserve.give_up()
        self.state = State.CLOSED
