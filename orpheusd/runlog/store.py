"""The read-write side of the database: one commit at a time, each followed by the mark. Used by one thread.

It raises what SQLite raises and decides nothing about it: whether to wait, to retry or to give up is the writer's.
"""

# ruff: noqa: S608 - the pieces are constants; values are bound

import sqlite3
from pathlib import Path
from typing import NamedTuple

from orpheusd.failpoints import reached
from orpheusd.runlog.batch import Batch
from orpheusd.runlog.chain import Head, follow
from orpheusd.runlog.mark import Mark
from orpheusd.runlog.pens import ROW_ERRORS, CarefulPen, FastPen, Pen, has_ended
from orpheusd.runlog.place import wal_of
from orpheusd.runlog.schema import COLUMNS, RING, connect_reader, connect_writer

#: Pages a commit touches besides its rows: indexes, chain. With it the size of the WAL is estimated.
PAGES_PER_COMMIT = 6
PAGES_PER_ROW = 2
PAGE_BYTES = 4096
#: What a run takes in the database beside its input and result, indexes included.
ROW_BYTES = 512
_DETACHED, _KEY = COLUMNS.index("detached"), COLUMNS.index("idempotency_key")


class ForeignWriter(Exception):
    """Somebody else wrote to the database: it is not ours to continue."""


class Written(NamedTuple):
    """What a commit did. `ended`: runs whose end is in the log now, repeats included.

    `queued` are the runs queued there since whose callers may wait for that (detached, streaming, or with a key),
    `started` those that have started there and are detached or have a key.
    """

    ended: list[str]
    queued: list[str]
    started: list[str]
    refusals: list[str]


class Room(NamedTuple):
    """Pages of the database file: all, and those that hold nothing."""

    pages: int
    free_pages: int


class Store:
    """Invariant: `head` is the newest link of the chain in the database, and the mark is never ahead of it."""

    def __init__(self, path: Path, mark: Mark, head: Head) -> None:
        self.path = path
        self.mark = mark
        self.head = head
        #: Pages written to the WAL since the last checkpoint, more or less.
        self.wal_pages = 0
        self._connection = connect_writer(path)
        self._guard: sqlite3.Connection | None = None
        try:
            # While a second connection holds the file, closing the first does not checkpoint: see `abandon`.
            self._guard = connect_reader(path)
            self._guard.execute("SELECT 1 FROM log").fetchall()
            self._files = [(each, each.stat().st_ino) for each in (path, wal_of(path))]
        except BaseException:
            self.abandon()
            raise

    def write(self, batch: Batch) -> Written:
        """Commit the batch. A row that cannot be written is refused; nothing else holds the others back."""
        try:
            try:
                return self._write(batch, FastPen(self._connection))
            except ROW_ERRORS:
                self._roll_back()
                return self._write(batch, CarefulPen(self._connection))
        except BaseException:
            self._roll_back()
            raise

    def trim(self, limit_rows: int, ended_before_us: int) -> int:
        """Delete, of the oldest `limit_rows` ended runs, those that are old enough. Returns how many went."""
        oldest = self._connection.execute(
            "SELECT seq, checksum, ended_at FROM runs WHERE ended_at IS NOT NULL ORDER BY seq LIMIT ?",
            (limit_rows,)).fetchall()
        return self._delete([(seq, checksum) for seq, checksum, ended_at in oldest if ended_at < ended_before_us])

    def make_room(
        self, limit_rows: int, wanted_bytes: int, after_seq: int, before_seq: int, keys_since_us: int
    ) -> int:  # fmt: skip
        """Delete the oldest ended runs between these numbers until they took about so many bytes, but for those with
        a key that were accepted since then. At most `limit_rows` are looked at. Returns the number of the last one, 0
        when there was none."""
        rows, looked_at = [], 0
        for seq, checksum, size_bytes, is_kept in self._connection.execute(
                f"SELECT seq, checksum, {ROW_BYTES} + ifnull(length(input), 0) + ifnull(length(result), 0),"
                " idempotency_key IS NOT NULL AND queued_at >= ?"
                " FROM runs WHERE seq > ? AND seq < ? AND ended_at IS NOT NULL ORDER BY seq LIMIT ?",
                (keys_since_us, after_seq, before_seq, limit_rows)).fetchall():
            if wanted_bytes <= 0:
                break
            looked_at = seq
            if not is_kept:
                rows.append((seq, checksum))
                wanted_bytes -= size_bytes
        self._delete(rows)
        return looked_at

    def _delete(self, rows: list[tuple[int, int]]) -> int:
        """Delete the runs of these numbers and checksums. Returns how many."""
        if not rows:
            return 0
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            places = ", ".join("?" * len(rows))
            reached("runlog-trimming")
            self._connection.execute(f"DELETE FROM runs WHERE seq IN ({places})", [seq for seq, _ in rows])
            self._commit(-len(rows), -sum(checksum for _, checksum in rows), self.head.next_seq)
        except BaseException:
            self._roll_back()
            raise
        self.wal_pages += PAGES_PER_COMMIT + PAGES_PER_ROW * len(rows)
        return len(rows)

    def give_back(self, pages: int) -> None:
        """Return up to `pages` empty pages to the file system."""
        # It yields a row without columns for each page, at which `execute` stops; a script runs to its end.
        self._connection.executescript(f"PRAGMA incremental_vacuum({pages:d})")
        self.wal_pages += pages
        reached("runlog-given-back")

    def room(self) -> Room:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return Room(pages, free)

    def checkpoint(self) -> None:
        """Move the WAL into the database, as far as readers let us."""
        busy, left, moved_pages = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        reached("runlog-checkpointed")
        self.wal_pages = 0 if not busy else max(0, left - moved_pages)

    def in_place(self) -> bool:
        """Whether the files we hold open are still those at their paths."""
        try:
            return all(path.stat().st_ino == inode for path, inode in self._files) and not self.mark.replaced()
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Checkpoint everything, and close. What it raises has cost nothing: the WAL is still there."""
        try:
            if self._guard is not None:
                self._guard.close()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.mark.sync()
        finally:
            self._connection.close()
            self.mark.close()

    def abandon(self) -> None:
        """Close without touching the database again: after a failed fsync another one would lie."""
        self._connection.close()
        if self._guard is not None:
            self._guard.close()
        self.mark.close()

    def _write(self, batch: Batch, pen: Pen) -> Written:
        self._connection.execute("BEGIN IMMEDIATE")
        refusals = [f"{change.run_id}: a second {type(change).__name__.lower()}" for change in batch.repeats]
        known = pen.known(batch.stories)
        next_seq, added_rows, added_total = self.head.next_seq, 0, 0
        ended: list[str] = []
        queued: list[str] = []
        started: list[str] = []
        for run_id, story in batch.stories.items():
            before = known.get(run_id)
            if story.ended and before is not None and has_ended(before):
                ended.append(run_id)
            try:
                row = pen.write(before, next_seq, story)
            except ROW_ERRORS as error:
                if pen.hasty:
                    raise
                refusals.append(f"{run_id}: {error}")
                continue
            if row is None:
                refusals.append(f"{run_id}: not in the log, or over already")
                continue
            added_total += row[-1]
            if before is not None:
                added_total -= before[-1]
            else:
                next_seq += 1
                added_rows += 1
            if story.queued is not None and story.queued.awaited:
                queued.append(run_id)
            if story.started is not None and (row[_DETACHED] or row[_KEY] is not None):
                started.append(run_id)
            if story.ended:
                ended.append(run_id)
        pen.finish()
        self._commit(added_rows, added_total, next_seq)
        self.wal_pages += PAGES_PER_COMMIT + PAGES_PER_ROW * len(batch.stories) + batch.size_bytes // PAGE_BYTES
        return Written(ended, queued, started, refusals)

    def _commit(self, added_rows: int, added_total: int, next_seq: int) -> None:
        head = follow(self.head, added_rows, added_total, next_seq)
        cursor = self._connection.execute(
            "UPDATE chain SET commit_no = ?, row_count = ?, total = ?, next_seq = ?, digest = ?"
            " WHERE slot = ? AND commit_no = ?",
            (*head, head.commit_no % RING, head.commit_no - RING))
        if cursor.rowcount != 1:
            raise ForeignWriter(f"commit {head.commit_no} of the run log was made by somebody else")
        reached("runlog-committing")
        self._connection.execute("COMMIT")
        reached("runlog-committed")
        self.head = head
        self.mark.advance(head)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
