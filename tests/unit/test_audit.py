"""The audit log as a file: bounded, private, and honest about what it lost."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from orpheusd import audit as module
from orpheusd.audit import Asker, Audit, digest_of
from orpheusd.operations import BY_NAME

ASKER = Asker("ctl", 1000, 4711, "/usr/bin/python3")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_who_what_and_how_it_ended(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.note(ASKER, "restart", "a", "d" * 64, "done")
    audit.note(ASKER, "deploy", None, "e" * 64, "conflict")
    audit.close(5.0)
    first, second = lines(tmp_path / "audit.log")
    assert first.pop("time") <= second.pop("time")
    assert first == {**ASKER._asdict(), "operation": "restart", "agent": "a", "params": "d" * 64, "outcome": "done"}
    assert second["outcome"] == "conflict"
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_it_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT_BYTES", 1000)
    audit = Audit(tmp_path / "audit.log")
    for number in range(50):
        audit.note(ASKER, "restart", f"a-{number}", "", "done")
    audit.close(5.0)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.log", "audit.log.1"}
    assert all(path.stat().st_size < 1500 for path in tmp_path.iterdir())
    assert lines(tmp_path / "audit.log")[-1]["agent"] == "a-49"


def test_what_could_not_be_written_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    path.mkdir()
    audit = Audit(path)
    audit.note(ASKER, "restart", "a", "", "done")
    audit._thread.submit(path.rmdir)
    audit.note(ASKER, "restart", "b", "", "done")
    audit.note(ASKER, "restart", "c", "", "done")
    with caplog.at_level(logging.WARNING):
        audit.close(5.0)
    assert [(row["agent"], row.get("lost_before")) for row in lines(path)] == [("b", 1), ("c", None)]


def test_a_digest_has_no_part_of_a_value() -> None:
    deploy = BY_NAME["deploy"]
    given = {"upload_id": "0" * 32, "env": {"KEY": "hunter2"}}
    assert digest_of(deploy, given) == digest_of(deploy, {"env": {"KEY": "another"}, "upload_id": "0" * 32})
    assert digest_of(deploy, given) != digest_of(deploy, {**given, "env": {"OTHER": "hunter2"}})
    assert digest_of(deploy, given) != digest_of(deploy, {**given, "upload_id": "1" * 32})
    assert digest_of(deploy, {"env": "no object"})
    put = BY_NAME["bundle.put"]
    assert digest_of(put, {"upload_id": "0" * 32, "data": "AAAA"}) == digest_of(put, {"upload_id": "0" * 32})
    assert digest_of(put, {"upload_id": "0" * 32}) != digest_of(put, {"upload_id": "1" * 32})
    nested: object = []
    for _ in range(900):
        nested = [nested]
    assert digest_of(deploy, {"upload_id": nested}) == ""
