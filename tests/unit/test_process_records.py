"""The records of templates: what is taken for one, what is removed, and what is neither."""

import json
import os
import resource
from pathlib import Path

import pytest

from orpheusd.process.records import Record, Records

RECORDS = [Record("t-1-1", "an-agent", 3, "00" * 32, 512), Record("t-1-2", "another", 1, "11" * 32)]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path)
    for record in RECORDS:
        made.write(record)
    return made


def test_what_was_written_is_read_and_forgotten(records: Records) -> None:
    assert records.all() == RECORDS
    records.forget("t-1-1")
    assert records.all() == RECORDS[1:]
    assert records.templates() == ["t-1-2"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b'{"template": "t-1-3"}'])
def test_what_is_malformed_is_removed(records: Records, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t-1-3.json").write_bytes(content)
    assert records.templates() == ["t-1-1", "t-1-2", "t-1-3"]
    assert records.all() == RECORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-1-1.json", "t-1-2.json"]


def test_what_was_not_written_to_its_end_is_no_record(records: Records, tmp_path: Path) -> None:
    (tmp_path / "t-1-1.new").write_text(json.dumps(RECORDS[0]._asdict()))
    (tmp_path / "t-1-9.new").write_text(json.dumps(RECORDS[0]._asdict()))
    assert records.all() == RECORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-1-1.json", "t-1-2.json"]


def test_one_that_cannot_be_read_now_is_kept(records: Records, tmp_path: Path) -> None:
    unreadable = tmp_path / "t-1-3.json"
    unreadable.symlink_to(unreadable)
    with pytest.raises(OSError, match="symbolic links"):
        records.all()
    assert unreadable.is_symlink()
    assert records.templates() == ["t-1-1", "t-1-2", "t-1-3"]


def test_without_descriptors_they_are_not_taken_for_none(records: Records) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open() as next_one:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno(), limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            records.all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert records.all() == RECORDS


def test_records_are_read_in_the_order_in_which_their_templates_were_started(tmp_path: Path) -> None:
    """Names tell nothing of it: each daemon has a random one in those of its templates."""
    records = Records(tmp_path)
    started = [Record(name, "echo", 1, "00" * 32) for name in ("t-f00-9", "t-f00-10", "t-a11-1", "t-b22-1")]
    for at, record in enumerate(started):
        records.write(record)
        os.utime(tmp_path / f"{record.template}.json", (at, at))
    assert records.all() == started
    records.forget("t-f00-10")
    (tmp_path / "t-b22-1.json").write_text("{")
    assert records.all() == [started[0], started[2]] and not (tmp_path / "t-b22-1.json").exists()
