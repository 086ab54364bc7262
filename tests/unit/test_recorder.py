"""The recorder: the story of a run goes into a real run log and comes back as callers see it."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from orpheusd.recorder import Key, Recorder, described
from orpheusd.runlog.queries import RunQuery
from orpheusd.runlog.rows import RunDetail
from orpheusd.runlog.settings import Settings
from orpheusd.wire.worker import Message
from tests.eventually import eventually

THOROUGH = Settings(check_budget_s=30.0, reserve_bytes=4096)
WHY = Why("soft", "allow", 0.0, 1, None)
WORKER = Worker("w-b-2", Template("t-b-1", "a", 3, AgentSettings(), None), Slot(), 0.0)


@contextmanager
def recorder(folder: Path, settings: Settings = THOROUGH) -> Iterator[Recorder]:
    failures: list[str] = []
    book = Recorder(folder / "runs.db", settings, failures.append)
    try:
        yield book
    finally:
        book.close(10.0)
    assert failures == []


def accept(book: Recorder, run_id: str, session_id: str | None = "s", input: bytes = b'{"q":1}') -> None:
    book.accepted(run_id, "a", session_id, "ctl", "uid 7", input)


def start(book: Recorder, run_id: str, context: str | None = "warm", turn: int = 2) -> None:
    book.started(Dispatch("w-b-2", run_id, "s", context, turn, 300.0), WORKER)


def outcome(run_id: str, **changes: Any) -> Outcome:
    done = Outcome(run_id, "completed", "", "", b'{"turn":2}', {}, "w-b-2", "s", "warm", 2, 12.5, "", WHY, 0.0, {})
    return done._replace(**changes)


def show(book: Recorder, run_id: str) -> dict[str, Any]:
    """What is written of a run, as a caller gets it."""
    eventually(lambda: not book.health()["pending_changes"], what="everything to be written")
    shown: dict[str, Any] = orjson.loads(orjson.dumps(described(detail(book, run_id))))
    return shown


def detail(book: Recorder, run_id: str) -> RunDetail:
    found = asyncio.run(book.detail(run_id))
    assert found is not None
    return found


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
        assert asyncio.run(book.detail("r-9")) is None


def test_what_cannot_be_recorded_is_not_accepted(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        book.ended(outcome("r-1"))
        book.close(10.0)
        with pytest.raises(OrpheusError, match="cannot be recorded now \\(it is closed\\)") as raised:
            accept(book, "r-2")
    assert raised.value.code == "overloaded" and raised.value.retry_after_s


def one_of_each(book: Recorder) -> None:
    """Three runs, named as they stand."""
    for run_id in ("queued", "started", "ended"):
        accept(book, run_id)
    start(book, "started")
    start(book, "ended")
    book.ended(outcome("ended"))


def test_what_an_earlier_daemon_left_unfinished_of_an_agent_that_is_gone_has_crashed(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        one_of_each(book)
    with recorder(tmp_path) as book:
        book.give_up_unfinished({"a"})
        taken = book.take_unfinished("a", 9.0)
        assert {run.run: (run.session, run.context, run.worker, run.left_s) for run in taken} == {
            "queued": ("s", None, None, 9.0), "started": ("s", "warm", "w-b-2", 9.0)}
        assert book.take_unfinished("b", 9.0) == ()
        book.give_up_unfinished({"b"})
        rows = {run_id: show(book, run_id) for run_id in ("queued", "started", "ended")}
    assert {run_id: row["state"] for run_id, row in rows.items()} == {
        "queued": "crashed", "started": "crashed", "ended": "completed"}
    for run_id in ("queued", "started"):
        assert rows[run_id]["code"] == "worker-crashed"
        assert rows[run_id]["error_message"] == (
            f"the daemon ended while this run was {run_id}, and its agent is not deployed any more")


def test_what_is_left_of_a_run_has_its_own_timeout_and_the_time_it_has_taken(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        book.accepted("own", "a", None, "ctl", "uid 7", b"1", options='{"timeout_s":77.0}')
        for run_id in ("plain", "own"):
            if run_id == "plain":
                accept(book, run_id)
            start(book, run_id)
    began = time.time()
    with recorder(tmp_path) as book:
        taken = {run.run: run for run in book.take_unfinished("a", 9.0)}
        assert (taken["plain"].left_s, taken["own"].left_s) == (9.0, 77.0)
        assert 0.0 <= taken["plain"].elapsed_s <= time.time() - began + 10.0


def held(run_id: str, over: bool = True, timeout_s: float = 60.0, elapsed_s: float = 20.0) -> Message:
    """What the worker says of a run that it has."""
    note = {"source": "http", "caller": "uid 9", "at": 1000.5}
    return Message("held", {"run_id": run_id, "session_id": "s", "context": "warm", "turn": 2, "timeout_s": timeout_s,
                            "note": note, "elapsed_s": elapsed_s, "over": over}, b'{"q":1}')


def test_a_worker_that_is_adopted_brings_runs_that_the_log_does_not_know(tmp_path: Path) -> None:
    # fault 33
    with recorder(tmp_path) as book:
        one_of_each(book)
    with recorder(tmp_path) as book:
        brought = [held(run_id) for run_id in ("queued", "started", "ended", "unwritten")]
        assert book.unknown(brought) == ["ended", "unwritten"], "of the others the log has told at the start"
        states = asyncio.run(book.states(["ended", "unwritten"]))
        found = book.adopted(WORKER, brought, states)
        assert found.over == ["ended"]
        assert [(run.run, run.session, run.worker, run.left_s, run.elapsed_s) for run in found.runs] == [
            (run_id, "s", "w-b-2", 40.0, 20.0) for run_id in ("queued", "started", "unwritten")]
        rows = {run_id: show(book, run_id) for run_id in ("queued", "started", "ended", "unwritten")}
        assert {run_id: row["state"] for run_id, row in rows.items()} == {
            "queued": "started", "started": "started", "ended": "completed", "unwritten": "started"}
        written = rows["unwritten"]
        assert (written["agent"], written["session_id"], written["source"], written["caller"], written["input"]) == (
            "a", "s", "http", "uid 9", {"q": 1})
        assert (written["version"], written["worker_id"], written["turn"]) == (3, "w-b-2", 2)
        assert written["queued_at"] == written["started_at"] == 1000.5
        assert book.health()["refused_changes"] == 0


def test_what_a_worker_brings_is_written_when_the_disk_takes_it_again(tmp_path: Path) -> None:
    with recorder(tmp_path, replace(THOROUGH, pending_changes=1)) as book:
        # whoever writes holds the only lock: the log takes nothing, and refuses new runs
        lock = sqlite3.connect(book.health()["path"], isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        accept(book, "r-before")
        with pytest.raises(OrpheusError):
            accept(book, "r-refused")
        brought = book.adopted(WORKER, [held("r-1")], {})
        book.ended(outcome("r-1"))
        lock.close()
        row = show(book, "r-1")
        book.ended(outcome("r-before", state="crashed", code="worker-crashed", result=b""))
    assert [run.run for run in brought.runs] == ["r-1"]
    assert (row["state"], row["result"]) == ("completed", {"turn": 2})


def test_a_worker_cannot_claim_a_run_of_another_agent(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        book.accepted("r-1", "b", None, "ctl", "uid 7", b"1")
    with recorder(tmp_path) as book:
        assert book.unknown([held("r-1")]) == []
        assert book.adopted(WORKER, [held("r-1")], {}) == ((), ["r-1"])
        assert show(book, "r-1")["state"] == "queued"


def test_a_run_that_was_given_up_is_over_for_a_worker_that_comes_late(tmp_path: Path) -> None:
    """At once, also while its end is on its way to the disk."""
    with recorder(tmp_path) as book:
        accept(book, "r-1")
        start(book, "r-1")
    with recorder(tmp_path) as book:
        book.ended(outcome("r-1", state="crashed", code="worker-crashed", result=b""))
        assert book.unknown([held("r-1")]) == []
        assert book.adopted(WORKER, [held("r-1")], {}) == ((), ["r-1"])
        assert show(book, "r-1")["state"] == "crashed"


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


class Listening:
    """What the recorder tells a loop, and in which thread."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []
        self.threads: set[str] = set()

    def committed(self, run_ids: list[str]) -> None:
        self._tell("committed", run_ids)

    def queued_written(self, run_ids: list[str]) -> None:
        self._tell("queued", run_ids)

    def started_written(self, run_ids: list[str]) -> None:
        self._tell("started", run_ids)

    def log_failed(self) -> None:
        self._tell("failed", [])

    def _tell(self, what: str, run_ids: list[str]) -> None:
        self.told.append((what, run_ids))
        self.threads.add(threading.current_thread().name)

    def runs(self, told: str) -> list[str]:
        return [run_id for what, run_ids in self.told if what == told for run_id in run_ids]


def test_the_loop_is_told_what_the_disk_has(tmp_path: Path) -> None:
    async def scene(book: Recorder) -> Listening:
        listening = Listening()
        book.listen(asyncio.get_running_loop(), listening)
        book.accepted("r-plain", "a", None, "ctl", "", b"1")
        book.accepted("r-detached", "a", None, "ctl", "", b"1", "{}")
        book.accepted("r-keyed", "a", None, "ctl", "", b"1", None, Key("k", "f"))
        await until(lambda: listening.runs("queued") == ["r-detached", "r-keyed"])
        book.started(Dispatch("w-b-2", "r-plain", None, None, 0, 1.0), WORKER)
        book.started(Dispatch("w-b-2", "r-detached", None, None, 0, 1.0), WORKER, True)
        await until(lambda: listening.runs("started") == ["r-detached"])
        book.ended(outcome("r-plain"))
        await until(lambda: listening.runs("committed") == ["r-plain"])
        return listening

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.005)

    with recorder(tmp_path) as book:
        listening = asyncio.run(scene(book))
        book.ended(outcome("r-detached"))  # its loop is gone
        show(book, "r-detached")
    # by what the disk has: how many commits that took is the log's business
    assert {what: listening.runs(what) for what, _ in listening.told} == {
        "queued": ["r-detached", "r-keyed"], "started": ["r-detached"], "committed": ["r-plain"]}
    assert listening.threads == {threading.main_thread().name}


def test_detached_runs_that_never_started_are_left_to_be_queued_again(tmp_path: Path) -> None:
    with recorder(tmp_path) as book:
        for run_id in ("queued", "started"):
            book.accepted(run_id, "a", "s", "ctl", "", b'{"q":1}', '{"timeout_s":3}', Key("k", "f"))
        start(book, "started")
    with recorder(tmp_path) as book:
        left = book.accepted_before
        assert [(one.run.run_id, one.options, one.idempotency_key) for one in left] == [
            ("queued", '{"timeout_s":3}', "k")]
        assert book.inputs(["queued", "nobody"]) == {"queued": b'{"q":1}'}
        assert [run.run for run in book.take_unfinished("a", 300.0)] == ["started"]
        assert book.found_whole("started") and not book.found_whole("nobody")
        book.give_up_unfinished(())
        assert {run_id: show(book, run_id)["state"] for run_id in ("queued", "started")} == {
            "queued": "queued", "started": "crashed"}


def test_a_key_leads_to_the_run_that_was_executed_under_it(tmp_path: Path) -> None:
    def asked(name: str, agent: str = "a", since: float = 0.0) -> str | None:
        found = asyncio.run(book.asked(agent, name, since))
        return found.run.run_id if found is not None else None

    with recorder(tmp_path) as book:
        for run_id, name in (("r-never", "k-1"), ("r-first", "k-2"), ("r-later", "k-2")):
            book.accepted(run_id, "a", None, "ctl", "", b"1", None, Key(name, "f"))
            if run_id != "r-never":
                start(book, run_id)
            book.ended(outcome(run_id))
        show(book, "r-later")
        assert asked("k-1") is None, "a run that was never executed does not bind its key"
        assert asked("k-2") == "r-later"
        assert asked("k-2", agent="b") is None and asked("k-3") is None
        assert asked("k-2", since=time.time() + 60) is None
