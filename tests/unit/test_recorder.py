"""The recorder: the story of a run goes into a real run log and comes back as callers see it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from orpheusd.core.agent import Settings as AgentSettings
from orpheusd.core.effects import Dispatch, Why
from orpheusd.core.restart import Slot
from orpheusd.core.worker import Template, Worker
from orpheusd.errors import OrpheusError
from orpheusd.outcome import Outcome
from orpheusd.recorder import Recorder
from orpheusd.runlog.queries import RunQuery
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually

THOROUGH = Settings(check_budget_s=30.0, reserve_bytes=4096)
WHY = Why("soft", "allow", 0.0, 1, None)
WORKER = Worker("w-b-2", Template("t-b-1", "a", 3, AgentSettings(), None), Slot(), 0.0)


@contextmanager
def recorder(folder: Path, settings: Settings = THOROUGH) -> Iterator[Recorder]:
    book = Recorder(folder / "runs.db", settings)
    try:
        yield book
    finally:
        book.close(10.0)


def accept(book: Recorder, run_id: str, session_id: str | None = "s", input: bytes = b'{"q":1}') -> None:
    book.accepted(run_id, "a", session_id, "ctl", "uid 7", input)


def start(book: Recorder, run_id: str, context: str | None = "warm", turn: int = 2) -> None:
    book.started(Dispatch("w-b-2", run_id, "s", context, turn, 300.0), WORKER)


def outcome(run_id: str, **changes: Any) -> Outcome:
    done = Outcome(run_id, "completed", "", "", b'{"turn":2}', {}, "w-b-2", "s", "warm", 2, 12.5, "", WHY, {})
    return done._replace(**changes)


def show(book: Recorder, run_id: str) -> dict[str, Any]:
    """What is written of a run, as a caller gets it."""
    eventually(lambda: not book.health()["pending_changes"], what="everything to be written")
    shown: dict[str, Any] = orjson.loads(orjson.dumps(asyncio.run(book.show(run_id))))
    return shown


def test_a_whole_run_comes_back(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        start(book, "r-1")
        book.ended(outcome("r-1"))
        row = show(book, "r-1")
    assert (row["run_id"], row["agent"], row["session_id"], row["source"], row["caller"]) == (
        "r-1", "a", "s", "ctl", "uid 7")
    assert (row["version"], row["worker_id"], row["context"], row["turn"]) == (3, "w-b-2", "warm", 2)
    assert (row["state"], row["code"], row["duration_ms"]) == ("completed", "", 12.5)
    assert (row["input"], row["result"], row["damaged"]) == ({"q": 1}, {"turn": 2}, False)
    assert row["queued_at"] <= row["started_at"] <= row["ended_at"]
    assert "duration_us" not in row


def test_a_failure_comes_back_with_what_the_worker_told(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        start(book, "r-1")
        book.ended(outcome("r-1", state="failed", code="handler-failed", message="no such key", result=b"",
                           error={"type": "KeyError", "traceback": "Traceback …"}))
        row = show(book, "r-1")
    assert (row["state"], row["code"], row["error_type"], row["error_message"], row["traceback"]) == (
        "failed", "handler-failed", "KeyError", "no such key", "Traceback …")
    assert row["result"] is None and row["exit_cause"] is None


def test_the_end_says_what_became_of_the_context_and_of_the_worker(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        start(book, "r-1", "lost")
        book.ended(outcome("r-1", context="restored", turn=3))
        accept(book, "r-2")
        start(book, "r-2")
        book.ended(outcome("r-2", state="crashed", code="worker-crashed", result=b"", cause="signal 9"))
        restored, crashed = show(book, "r-1"), show(book, "r-2")
    assert (restored["context"], restored["turn"]) == ("restored", 3)
    assert (crashed["state"], crashed["exit_cause"]) == ("crashed", "signal 9")


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1", session_id=None)
        queued = show(book, "r-1")
        book.started(Dispatch("w-b-2", "r-1", None, None, 0, 300.0), WORKER)
        started = show(book, "r-1")
        book.ended(outcome("r-1", session_id=None, context=None, turn=0))
    assert (queued["state"], queued["worker_id"], queued["duration_ms"]) == ("queued", None, None)
    assert (started["state"], started["worker_id"], started["context"]) == ("started", "w-b-2", None)


def test_a_payload_that_was_cut_comes_back_as_text(tmp_path: Path) -> None:
    settings = Settings(check_budget_s=30.0, reserve_bytes=4096, input_limit_bytes=8, result_limit_bytes=8)
    with recorder(tmp_path, settings) as book:
        accept(book, "r-1", input=b'{"query": "long"}')
        start(book, "r-1")
        book.ended(outcome("r-1", result=b'"' + b"x" * 100 + b'"'))
        row = show(book, "r-1")
    assert (row["input"], row["input_truncated"], row["input_bytes"]) == ('{"query"', True, 17)
    assert (row["result"], row["result_truncated"], row["result_bytes"]) == ('"xxxxxxx', True, 102)


def test_runs_are_found_newest_first(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        for number in range(3):
            accept(book, f"r-{number}", session_id="s" if number else "t")
            book.ended(outcome(f"r-{number}", state="cancelled", code="cancelled", result=b""))
        show(book, "r-2")
        everything = asyncio.run(book.find(RunQuery()))
        of_the_session = asyncio.run(book.find(RunQuery(session_id="s", limit=1)))
    assert [row["run_id"] for row in everything] == ["r-2", "r-1", "r-0"]
    assert [row["run_id"] for row in of_the_session] == ["r-2"]
    assert all(row["duration_ms"] == 12.5 and "input" not in row for row in everything)


def test_a_run_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        with pytest.raises(OrpheusError, match="has no run r-9") as raised:
            asyncio.run(book.show("r-9"))
    assert raised.value.code == "not-found"


def test_what_cannot_be_recorded_is_not_accepted(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        book.ended(outcome("r-1"))
        book.close(10.0)
        with pytest.raises(OrpheusError, match="cannot be recorded now \\(it is closed\\)") as raised:
            accept(book, "r-2")
    assert raised.value.code == "overloaded" and raised.value.retry_after_s


def test_what_an_earlier_daemon_left_unfinished_has_crashed(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        for run_id in ("queued", "started", "ended"):
            accept(book, run_id)
        start(book, "started")
        start(book, "ended")
        book.ended(outcome("ended"))
    with recorder(tmp_path) as book:
        rows = {run_id: show(book, run_id) for run_id in ("queued", "started", "ended")}
    assert {run_id: row["state"] for run_id, row in rows.items()} == {
        "queued": "crashed", "started": "crashed", "ended": "completed"}
    for run_id in ("queued", "started"):
        assert rows[run_id]["code"] == "worker-crashed"
        assert rows[run_id]["error_message"] == f"the daemon ended while this run was {run_id}"


def test_a_damaged_log_is_put_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        book.ended(outcome("r-1"))
    (tmp_path / "runs.db").write_bytes(b"no database" * 1000)
    with recorder(tmp_path) as book:
        assert "the run log was damaged and put aside" in caplog.text
        accept(book, "r-2")
        book.ended(outcome("r-2"))
        assert show(book, "r-2")["state"] == "completed"
