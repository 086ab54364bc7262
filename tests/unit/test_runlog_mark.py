"""The high-water mark and the chain of commits: what they remember, and what they find out."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.runlog import mark
from orpheusd.runlog.chain import Head, checksum, follow, genesis, read_ring
from orpheusd.runlog.mark import SLOT_STRIDE_BYTES, SYNC_COMMITS, Mark
from orpheusd.runlog.schema import RING

LOG_ID = b"0123456789abcdef"


def heads(count: int) -> list[Head]:
    """The genesis and the links of `count` commits of one row each."""
    made = [genesis(LOG_ID)]
    for number in range(count):
        made.append(follow(made[-1], 1, 1000 + number, number + 2))
    return made


def ring(links: list[Head]) -> list[tuple[int, int, int, int, int, bytes]]:
    rows = {slot: (slot, slot - RING, 0, 0, 1, b"") for slot in range(RING)}
    rows.update({head.commit_no % RING: (head.commit_no % RING, *head) for head in links})
    return list(rows.values())


def test_it_says_what_was_said_last(tmp_path: Path) -> None:
    made = Mark.create(tmp_path / "mark", LOG_ID)
    for head in heads(5):
        made.advance(head)
    made.close()
    found = mark.read(tmp_path / "mark")
    assert found.record is not None and not found.spoiled
    assert (found.record.commit_no, found.record.next_seq, found.record.log_id) == (5, 6, LOG_ID)
    assert found.record.digest == heads(5)[-1].digest
    assert not found.record.condemned
    assert (tmp_path / "mark").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", [0, 8, 20, 40, 60, 95, SLOT_STRIDE_BYTES, SLOT_STRIDE_BYTES + 50])
def test_a_spoiled_slot_leaves_the_other(tmp_path: Path, at: int) -> None:
    path = tmp_path / "mark"
    made = Mark.create(path, LOG_ID)
    for head in heads(4):
        made.advance(head)
    made.close()
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    found = mark.read(path)
    assert found.spoiled and found.record is not None
    # Commit 4 is in slot 0.
    assert found.record.commit_no == (3 if at < SLOT_STRIDE_BYTES else 4)


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"x" * 8192, os.urandom(99)], ids=["empty", "0", "x", "noise"])
def test_what_is_no_mark_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mark").write_bytes(content)
    assert mark.read(tmp_path / "mark") == (None, True)


def test_slots_of_two_logs_are_no_mark(tmp_path: Path) -> None:
    for name, log_id in (("one", LOG_ID), ("two", LOG_ID[::-1])):
        Mark.create(tmp_path / name, log_id).close()
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    (tmp_path / "mixed").write_bytes(one[:SLOT_STRIDE_BYTES] + two[SLOT_STRIDE_BYTES:])
    assert mark.read(tmp_path / "mixed").record is None


def test_a_condemned_log_stays_so(tmp_path: Path) -> None:
    made = Mark.create(tmp_path / "mark", LOG_ID)
    made.advance(heads(1)[1])
    made.condemn()
    made.advance(heads(2)[2])
    made.close()
    record = mark.read(tmp_path / "mark").record
    assert record is not None and record.condemned and record.commit_no == 2


def test_it_is_synced_before_the_chain_could_forget(tmp_path: Path) -> None:
    assert SYNC_COMMITS * 2 <= RING
    made = Mark.create(tmp_path / "mark", LOG_ID)
    links = heads(SYNC_COMMITS + 2)
    made.advance(links[1])
    assert made.unsynced == 0
    for head in links[2:]:
        made.advance(head)
        assert made.unsynced < SYNC_COMMITS
    made.close()


@pytest.mark.parametrize("commits", [0, 1, 5, RING - 1, RING, RING + 1, 3 * RING + 7])
def test_the_ring_holds_the_last_links(commits: int) -> None:
    links = heads(commits)
    digests, head = read_ring(ring(links))
    assert head == links[-1]
    assert len(digests) == min(commits + 1, RING)
    assert digests[commits] == links[-1].digest


@pytest.mark.parametrize("spoil", ["number", "rows", "total", "seq", "digest", "missing", "doubled"])
@pytest.mark.parametrize("commits", [10, RING + 10])
def test_a_link_that_does_not_hold_is_found(spoil: str, commits: int) -> None:
    rows = ring(heads(commits))
    slot = next(number for number, row in enumerate(rows) if row[1] == commits - 3)
    row = list(rows[slot])
    columns = {"number": 1, "rows": 2, "total": 3, "seq": 4}
    if spoil == "digest":
        row[5] = bytes(32)
    elif spoil in columns:
        row[columns[spoil]] += 1  # type: ignore[operator]
    rows[slot] = tuple(row)  # type: ignore[assignment]
    if spoil == "missing":
        del rows[slot]
    elif spoil == "doubled":
        rows.append(rows[slot])
    with pytest.raises(ValueError, match="chain of commits"):
        read_ring(rows)


VALUES = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"])))


@given(st.lists(VALUES, min_size=4, max_size=4), st.binary(), st.integers(0, 3))
def test_a_checksum_sees_each_value(values: list[object], payload: bytes, place: int) -> None:
    row = [*values, payload, b"result", "key", None, None]
    changed = [*values[:place], f"{values[place]}!", *values[place + 1 :], *row[4:]]
    assert checksum(row) != checksum(changed)
    assert checksum(row) != checksum([*values, payload + b"\x01", b"result", "key", None, None])
    assert len({checksum([*row[:6], *added]) for added in [
        ("key", None, None), (None, "key", None), (None, None, "key"), (None, None, None)]}) == 4
    assert checksum(row) == checksum(tuple(row))
