"""What the writer does between commits: sync the mark, checkpoint, delete what is too old or too much.

Each step is small, so that no run waits long for it. It knows nothing of threads.
"""

import time

from orpheusd.keys import KEPT_S
from orpheusd.runlog.settings import Settings
from orpheusd.runlog.store import PAGE_BYTES, Store

#: How often there is a look at the mark, the size and the files while there are commits.
LOOK_S = 1.0
#: How often age is looked at when there are none.
IDLE_LOOK_S = 60.0
#: The WAL is moved into the database when it has about this many pages (16 MiB), or when nothing happened for a while.
CHECKPOINT_PAGES = 4000
CHECKPOINT_IDLE_S = 5.0
#: Rows deleted in one go: a few milliseconds.
TRIM_ROWS = 256
#: And of what the database may hold, this part more than is too much, so that not each second has to delete again.
SLACK = 16
#: Runs that were passed over for their keys are looked at again this often: their time may be over.
PASS_S = 3600.0
_NEVER_US = 2**63 - 1
#: Empty pages are given back in steps of this many, once they are more than a quarter of the file.
GIVE_BACK_PAGES = 64
#: A wall clock that moved by more than this against the monotonic one was set; ages mean nothing for a while then.
CLOCK_STEP_S = 60.0
CLOCK_DISTRUST_S = 3600.0


class Replaced(Exception):
    """A file of the log was deleted or replaced while it was in use."""


class Upkeep:
    """Invariant: when a chore is owed, `due_s` says so; a chore that is not done is owed. Up to `_passed_seq` the runs
    that have ended had keys when they were looked at, since the last pass began."""

    def __init__(self, store: Store, settings: Settings) -> None:
        now = time.monotonic()
        self._store = store
        self._settings = settings
        self._wall_offset_s = time.time() - now
        self._distrust_until = 0.0
        self._next_look = now
        self._next_checkpoint = now + CHECKPOINT_IDLE_S
        self._checkpoint_pages = CHECKPOINT_PAGES
        self._dirty = False
        self._trimming = False
        self._passed_seq, self._next_pass = 0, 0.0
        self.used_bytes = 0

    def committed(self) -> None:
        """To be told after each commit."""
        now = time.monotonic()
        if not self._dirty:
            self._dirty = True
            self._next_look = min(self._next_look, now + LOOK_S)
        self._next_checkpoint = max(self._next_checkpoint, now + CHECKPOINT_IDLE_S)

    def due_s(self) -> float:
        """Seconds until `run` has something to do."""
        if self._trimming:
            return 0.0
        due = min(self._next_look, self._next_checkpoint) if self._store.wal_pages else self._next_look
        return max(0.0, due - time.monotonic())

    def run(self) -> None:
        """Do what is owed, one small step of each. Raises sqlite3.Error, OSError, or Replaced."""
        now = time.monotonic()
        pages = self._store.wal_pages
        if (pages and now >= self._next_checkpoint) or pages > self._checkpoint_pages:
            self._next_checkpoint = now + CHECKPOINT_IDLE_S
            self._store.checkpoint()
            # A reader may hold some of it back: the rest is tried again when there is that much more.
            self._checkpoint_pages = self._store.wal_pages + CHECKPOINT_PAGES
        if now >= self._next_look:
            self._look(now)
        if self._trimming:
            self._trimming = self._trim(now)

    def _look(self, now: float) -> None:
        if self._dirty and not self._store.in_place():
            raise Replaced("the run log's files were deleted or replaced while it was in use")
        if self._store.mark.unsynced:
            self._store.mark.sync()
        self._next_look = now + (LOOK_S if self._dirty else IDLE_LOOK_S)
        self._dirty = False
        self._trimming = True

    def _trim(self, now: float) -> bool:
        """One step of deleting and one of giving back; whether there is more to do."""
        store, settings = self._store, self._settings
        room = store.room()
        self.used_bytes = (room.pages - room.free_pages) * PAGE_BYTES
        excess_bytes = self.used_bytes - settings.max_bytes
        more = bool(settings.max_bytes) and excess_bytes > 0 and self._make_room(
            excess_bytes + settings.max_bytes // SLACK, now)
        if not more and settings.max_age_s and self._clock_trusted(now):
            oldest_us = int((time.time() - settings.max_age_s) * 1_000_000)
            more = store.trim(TRIM_ROWS, oldest_us) == TRIM_ROWS
        if room.free_pages > max(GIVE_BACK_PAGES, room.pages // 4):
            store.give_back(GIVE_BACK_PAGES)
            return True
        return more

    def _make_room(self, wanted_bytes: int, now: float) -> bool:
        """Delete the oldest runs, of the older half of the log alone: runs that have not ended may be all that is too
        much. There those whose keys are promised are passed over, and go when nothing else is left. Whether any was
        looked at."""
        store, head = self._store, self._store.head
        if now >= self._next_pass:
            self._next_pass, self._passed_seq = now + PASS_S, 0
        since_us = int((time.time() - KEPT_S) * 1_000_000) if self._clock_trusted(now) else 0
        half_seq = head.next_seq - max(1, head.row_count // 2)
        looked_at = store.make_room(TRIM_ROWS, wanted_bytes, self._passed_seq, half_seq, since_us)
        if looked_at:
            self._passed_seq = looked_at
            return True
        return store.make_room(TRIM_ROWS, wanted_bytes, 0, half_seq, _NEVER_US) > 0

    def _clock_trusted(self, now: float) -> bool:
        offset = time.time() - now
        if abs(offset - self._wall_offset_s) > CLOCK_STEP_S:
            self._wall_offset_s = offset
            self._distrust_until = now + CLOCK_DISTRUST_S
        return now >= self._distrust_until
