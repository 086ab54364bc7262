"""The high-water mark: a second file that says how far the log had come, so that a log that was cut is found out.

SQLite calls a shorter log sound. The mark is moved after each commit and never before, so a log that lies behind
its mark has lost commits. Two slots are written in turn, each with a checksum: a write that is torn leaves the
other. It knows nothing of SQL.

When it reaches the disk: within a second or 256 commits. A killed process loses nothing of it; after a power
failure the mark may lie behind the log, which the chain bears out, and never before it, for each commit was
synced first.
"""

import errno
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

from orpheusd.runlog.chain import DIGEST_BYTES, Head, genesis
from orpheusd.runlog.schema import RING

#: Slots lie a page apart, so that no torn page or bad sector takes both.
SLOT_STRIDE_BYTES = 4096
SYNC_COMMITS = 256
_MAGIC = b"orphmark"
_FORMAT = 1
_CONDEMNED = 1
_RECORD = struct.Struct(f"<8sII16sQQ{DIGEST_BYTES}s")
_SUM_BYTES = 16


class Record(NamedTuple):
    """What the mark says. `condemned`: damage was found while the log was in use; it must not be continued."""

    log_id: bytes
    commit_no: int
    next_seq: int
    digest: bytes
    condemned: bool


class Reading(NamedTuple):
    """A mark as found: None when no slot can be believed; `spoiled` when one of the two cannot."""

    record: Record | None
    spoiled: bool


def read(path: Path) -> Reading:
    """Raises FileNotFoundError, or OSError when the disk fails."""
    raw = path.read_bytes()
    records = [record for slot in range(2) if (record := _unpack(raw[slot * SLOT_STRIDE_BYTES :])) is not None]
    if not records:
        return Reading(None, True)
    if any(record.log_id != records[0].log_id for record in records):
        return Reading(None, True)
    newest = max(records, key=lambda record: record.commit_no)
    return Reading(newest._replace(condemned=any(record.condemned for record in records)), len(records) < 2)


class Mark:
    """The open mark of one log. Invariant: what it says was committed before."""

    def __init__(self, path: Path, log_id: bytes) -> None:
        self.path = path
        self._log_id = log_id
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._condemned = False
        self._last: Head | None = None
        self._missed = 0
        self.unsynced = 0

    @classmethod
    def create(cls, path: Path, log_id: bytes) -> "Mark":
        """A mark at commit 0, on the disk before it returns."""
        mark = cls(path, log_id)
        try:
            mark.rewrite(genesis(log_id))
        except BaseException:
            mark.close()
            raise
        return mark

    def rewrite(self, head: Head) -> None:
        """Write both slots, and sync them."""
        os.ftruncate(self._fd, 2 * SLOT_STRIDE_BYTES)
        for slot in range(2):
            self._write(slot, head)
        self.sync()

    def advance(self, head: Head) -> None:
        """Raises OSError when the file cannot be written for longer than the chain can make up for."""
        try:
            self._write(head.commit_no % 2, head)
        except OSError as error:
            # A file system that copies on write can be full here as well.
            self._missed += 1
            if error.errno != errno.ENOSPC or self._missed > RING // 2:
                raise
            return
        self._missed = 0
        self.unsynced += 1
        # The first commit at once: until then a mark at 0 says that there may be no database yet.
        if head.commit_no == 1 or self.unsynced >= SYNC_COMMITS:
            self.sync()

    def sync(self) -> None:
        os.fdatasync(self._fd)
        self.unsynced = 0

    def condemn(self) -> None:
        """Have the log quarantined at the next start."""
        self._condemned = True
        if self._last is not None:
            self.rewrite(self._last)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def replaced(self) -> bool:
        """Whether the path leads elsewhere than to the open file."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        here = os.fstat(self._fd)
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)

    def _write(self, slot: int, head: Head) -> None:
        self._last = head
        flags = _CONDEMNED if self._condemned else 0
        record = _RECORD.pack(_MAGIC, _FORMAT, flags, self._log_id, head.commit_no, head.next_seq, head.digest)
        os.pwrite(self._fd, record + _sum(record), slot * SLOT_STRIDE_BYTES)


def _unpack(raw: bytes) -> Record | None:
    record, stated = raw[: _RECORD.size], raw[_RECORD.size : _RECORD.size + _SUM_BYTES]
    if len(stated) != _SUM_BYTES or _sum(record) != stated:
        return None
    magic, form, flags, log_id, commit_no, next_seq, digest = _RECORD.unpack(record)
    if magic != _MAGIC or form != _FORMAT:
        return None
    return Record(log_id, commit_no, next_seq, digest, bool(flags & _CONDEMNED))


def _sum(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=_SUM_BYTES).digest()
