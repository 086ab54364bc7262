"""The chain of commits: each commit's link holds the digest of the one before and what the log held after it.

`total` is the sum of all rows' checksums: rows that are missing, changed or foreign change it. The last links are
kept in a ring inside the database, so that a mark which lies some commits behind can be placed. It finds damage;
it is no proof against somebody who can write the files and knows this page.
"""

import hashlib
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from orpheusd.runlog.schema import ADDED, RING

#: Sums of checksums stay below this: SQLite's integers are signed.
TOTAL_MODULUS = 2**62
DIGEST_BYTES = 32
_NUMBERS = struct.Struct("<QQQQ")
_LATER = len(ADDED)
_NOTHING = (None,) * _LATER


class Head(NamedTuple):
    """The newest link: commit `commit_no` left `row_count` rows with checksums summing to `total`."""

    commit_no: int
    row_count: int
    total: int
    next_seq: int
    digest: bytes


def genesis(log_id: bytes) -> Head:
    """The link before the first commit."""
    return Head(0, 0, 0, 1, hashlib.blake2b(log_id, digest_size=DIGEST_BYTES).digest())


def follow(head: Head, added_rows: int, added_total: int, next_seq: int) -> Head:
    """The link after one more commit."""
    numbers = (head.commit_no + 1, head.row_count + added_rows, (head.total + added_total) % TOTAL_MODULUS, next_seq)
    return Head(*numbers, link(head.digest, *numbers))


def link(before: bytes, commit_no: int, row_count: int, total: int, next_seq: int) -> bytes:
    numbers = _NUMBERS.pack(commit_no, row_count, total, next_seq)
    return hashlib.blake2b(before + numbers, digest_size=DIGEST_BYTES).digest()


def checksum(row: Sequence[Any]) -> int:
    """The checksum of a row without its last column: texts, whole numbers and None, two payloads, and `ADDED`.

    A number must be an `int` already: what SQLite would make of 1.0 or True reads back as something else. A row that
    has nothing in the columns that were added later has the checksum it had before there were any.
    """
    first, added = tuple(row[: -_LATER - 2]), tuple(row[-_LATER:])
    crc = zlib.crc32(("%s\x1f" * len(first) % first).encode())
    crc = zlib.crc32(row[-_LATER - 1] or b"", zlib.crc32(row[-_LATER - 2] or b"", crc))
    if added != _NOTHING:
        crc = zlib.crc32(("%s\x1f" * _LATER % added).encode(), crc)
    return crc


def read_ring(rows: list[tuple[int, int, int, int, int, bytes]]) -> tuple[dict[int, bytes], Head]:
    """The digests by commit number, and the head, of a ring as stored. Raises ValueError when a link does not hold."""
    links = sorted(Head(*row[1:]) for row in rows if row[1] >= 0)
    if not links:
        raise ValueError("the chain of commits is empty")
    head = links[-1]
    for slot, (stored_slot, commit_no, *_) in enumerate(sorted(rows)):
        newest = head.commit_no - (head.commit_no - slot) % RING
        if stored_slot != slot or commit_no != newest:
            raise ValueError(f"the chain of commits has commit {commit_no} where {newest} belongs")
    if len(rows) != RING:
        raise ValueError(f"the chain of commits has {len(rows)} slots of {RING}")
    for earlier, later in itertools.pairwise(links):
        if later.digest != link(earlier.digest, *later[:4]):
            raise ValueError(f"the chain of commits breaks at commit {later.commit_no}")
    return {each.commit_no: each.digest for each in links}, head
