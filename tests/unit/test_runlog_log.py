"""The run log: what is told is what is kept, once, and acknowledged when it is on the disk."""

import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from orpheusd.runlog.settings import Settings
from tests.runlog_kit import THOROUGH, Log, ended, queued, started, whole_run


def test_a_run_is_kept_as_it_was_told(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        before, start, end = queued("r-1", caller="uid 7 pid 8"), started("r-1"), ended("r-1", turn=3)
        assert log.log.queued(before)
        log.log.started(start)
        log.log.ended(end)
        log.settle(1)
        detail = log.show("r-1")
    run = detail.run
    assert (run.run_id, run.agent, run.session_id, run.source, run.caller) == (
        "r-1", "my-agent", "user-1", "http", "uid 7 pid 8")
    assert (run.version, run.worker_id, run.context, run.turn) == (3, "w-1-1", "warm", 3)
    assert (run.state, run.code, run.duration_us) == ("completed", "", 1234)
    assert run.queued_at == pytest.approx(before.queued_at, abs=2e-6)
    assert run.started_at == pytest.approx(start.started_at, abs=2e-6)
    assert run.ended_at == pytest.approx(end.ended_at, abs=2e-6)
    assert (detail.input, detail.result) == (before.input, end.result)
    assert (run.input_bytes, run.result_bytes) == (len(before.input or b""), len(end.result or b""))
    assert not (run.input_truncated or run.result_truncated or detail.damaged)


def test_a_failure_keeps_its_story(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1", state="crashed", code="worker-crashed", result=None, error_type="ValueError",
                  error_message="no", traceback="Traceback …", exit_cause="signal 9")
        log.settle(1)
        detail = log.show("r-1")
    assert (detail.run.state, detail.run.error_type, detail.run.error_message, detail.run.exit_cause) == (
        "crashed", "ValueError", "no", "signal 9")
    assert detail.traceback == "Traceback …"
    assert detail.result is None and not detail.run.result_truncated


def test_a_run_that_is_over_within_a_commit_is_written_once(tmp_path: Path) -> None:
    # fewer changes than a full batch, which would be committed at once
    with Log(tmp_path, Settings(linger_s=2.0, check_budget_s=30.0)) as log:
        for number in range(80):
            whole_run(log.log, f"r-{number}")
        log.settle(80)
        assert log.log.health()["commits"] == 1


def test_a_run_that_takes_longer_is_seen_at_each_step(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        assert log.log.queued(queued("r-1"))
        log.written()
        assert log.show("r-1").run.state == "queued"
        log.log.started(started("r-1"))
        log.written()
        assert log.show("r-1").run.state == "started"
        assert log.acknowledged == []
        log.log.ended(ended("r-1"))
        log.settle(1)
        assert log.show("r-1").run.state == "completed"
        assert not log.show("r-1").damaged
    assert log.acknowledged == ["r-1"]


def test_order_is_the_order_of_acceptance_whatever_the_clock_says(tmp_path: Path) -> None:
    # fault 51
    with Log(tmp_path) as log:
        for number, moment in enumerate((1000.0, 50.0, 2000.0, 0.0)):
            assert log.log.queued(queued(f"r-{number}", queued_at=moment))
        log.written()
        connection = sqlite3.connect(log.path)
        assert [row[0] for row in connection.execute("SELECT run_id FROM runs ORDER BY seq")] == [
            "r-0", "r-1", "r-2", "r-3"]
        connection.close()


@pytest.mark.parametrize("apart", [False, True])
def test_the_first_end_stands_and_is_acknowledged_again(tmp_path: Path, apart: bool) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1", state="failed", code="handler-failed")
        if apart:
            log.settle(1)
        log.log.ended(ended("r-1", state="completed", result=b"2"))
        log.log.ended(ended("r-1", state="crashed"))
        log.log.started(started("r-1"))
        log.written()
        assert log.show("r-1").run.state == "failed"
        assert set(log.acknowledged) == {"r-1"}
        assert log.log.health()["refused_changes"] == 3 if not apart else log.log.health()["refused_changes"] >= 2
        assert log.log.health()["state"] == "ok"


@pytest.mark.parametrize("apart", [False, True])
def test_a_run_that_starts_again_was_executed_where_it_started_last(tmp_path: Path, apart: bool) -> None:
    # fault 1: its first worker was gone before it had read the run
    with Log(tmp_path) as log:
        assert log.log.queued(queued("r-1"))
        log.log.started(started("r-1", worker_id="w-1"))
        if apart:
            log.written()
        log.log.started(started("r-1", worker_id="w-2", context="lost"))
        log.log.ended(ended("r-1"))
        log.settle(1)
        run = log.show("r-1").run
        assert (run.state, run.worker_id, run.context) == ("completed", "w-2", "lost")
        assert log.log.health()["refused_changes"] == 0


def test_a_run_id_is_accepted_once_and_takes_nobody_down_with_it(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
        for run_id in ("r-2", "r-1", "r-3"):
            assert log.log.queued(queued(run_id, input=b"again"))
            log.log.ended(ended(run_id))
        log.settle(4)
        assert log.show("r-1").input == queued("r-1").input
        assert {log.show(run_id).run.state for run_id in ("r-1", "r-2", "r-3")} == {"completed"}
        assert log.log.health()["rows"] == 3


def test_an_end_of_an_unknown_run_is_counted_and_not_acknowledged(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.log.ended(ended("r-unknown"))
        log.log.started(started("r-unknown-too"))
        whole_run(log.log, "r-1")
        log.settle(1)
        log.written()
        assert log.acknowledged == ["r-1"]
        assert log.log.health()["refused_changes"] == 2
        assert "r-unknown" in log.log.health()["last_refusal"]


HOSTILE: dict[str, Any] = {
    "a lone surrogate": "a\ud800b",
    "a NUL": "a\0b",
    "nothing": "",
    "an escape sequence": "\x1b[31m",
    "the separator of checksums": "\x1f\x1f",
    "every plane": "é中😀\U0010ffff",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_text_is_stored_and_the_others_with_it(tmp_path: Path, text: str) -> None:
    # fault 22
    with Log(tmp_path) as log:
        whole_run(log.log, "r-before")
        whole_run(log.log, "r-1", state="failed", error_type=text, error_message=text, traceback=text)
        whole_run(log.log, "r-after")
        log.settle(3)
        told = log.show("r-1")
        assert told.run.error_message == text.encode(errors="backslashreplace").decode()
        assert not told.damaged
        assert log.show("r-before").run.state == log.show("r-after").run.state == "completed"
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None


@pytest.mark.parametrize("change", [
    {"duration_us": 2**70}, {"duration_us": True}, {"duration_us": 12.0}, {"turn": True}, {"turn": 2.0},
    {"result": bytearray(b"1")}, {"result": memoryview(b"1")},
])  # fmt: skip
def test_what_is_nearly_right_is_stored_as_what_it_stands_for(tmp_path: Path, change: dict[str, Any]) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1", **change)
        log.settle(1)
        assert not log.show("r-1").damaged
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None


@pytest.mark.parametrize("change", [
    {"ended_at": float("nan")}, {"duration_us": None}, {"state": "weird"}, {"result": "text"}, {"code": b"bytes"},
    {"turn": "many"}, {"traceback": 12},
])  # fmt: skip
def test_what_cannot_be_stored_is_refused_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    with Log(tmp_path) as log:
        if "traceback" in change:
            with pytest.raises(TypeError):
                whole_run(log.log, "r-1", **change)
            log.log.ended(ended("r-1"))
            log.settle(1)
            return
        whole_run(log.log, "r-before")
        whole_run(log.log, "r-1", **change)
        whole_run(log.log, "r-after")
        log.settle(2)
        log.written()
        assert sorted(log.acknowledged) == ["r-after", "r-before"]
        assert log.log.health()["refused_changes"] == 1
        assert log.log.accepting


def test_large_payloads_are_cut_and_say_so(tmp_path: Path) -> None:
    big = bytes(range(256)) * 40 * 1024  # 10 MiB
    with Log(tmp_path) as log:
        assert log.log.queued(queued("r-1", input=big))
        log.log.ended(ended("r-1", result=big, error_message="m" * 10_000_000, traceback="t" * 99_999 + "the end"))
        log.settle(1)
        detail = log.show("r-1")
    assert detail.input == big[: THOROUGH.input_limit_bytes] and detail.run.input_bytes == len(big)
    assert detail.result == big[: THOROUGH.result_limit_bytes] and detail.run.result_bytes == len(big)
    assert detail.run.input_truncated and detail.run.result_truncated
    assert len(detail.run.error_message or "") == 8 * 1024 and len(detail.traceback or "") == 64 * 1024
    assert (detail.traceback or "").endswith("the end")
    assert not detail.damaged


def test_a_detached_run_is_kept_whole_and_confirmed(tmp_path: Path) -> None:
    big = b"x" * 2_000_000
    with Log(tmp_path, Settings(capture=False, input_limit_bytes=10, result_limit_bytes=10)) as log:
        assert log.log.queued(queued("r-1", input=big, detached=True, options='{"timeout_s": 3}'))
        log.written()
        assert log.detached == ["r-1"] and log.acknowledged == []
        log.log.ended(ended("r-1", result=big, whole=True))
        log.settle(1)
        detail = log.show("r-1")
    assert (detail.input, detail.result, detail.options) == (big, big, '{"timeout_s": 3}')
    assert detail.run.detached and not detail.run.input_truncated


def test_the_page_has_the_numbers_of_the_log() -> None:
    page, numbers = (Path(__file__).resolve().parents[2] / "docs/run-log.md").read_text(), Settings()
    assert f"for {numbers.linger_s * 1000:g} ms (or until {numbers.batch_rows} wait)" in page


def test_without_capture_no_payload_is_stored(tmp_path: Path) -> None:
    with Log(tmp_path, Settings(capture=False)) as log:
        whole_run(log.log, "r-1", result=b"a secret")
        log.settle(1)
        detail = log.show("r-1")
    assert detail.input is None and detail.result is None
    assert detail.run.result_bytes == 8 and detail.run.result_truncated and detail.run.input_truncated
    assert not any(b"a secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_closing_writes_what_is_pending(tmp_path: Path) -> None:
    with Log(tmp_path, Settings(linger_s=30.0, check_budget_s=30.0)) as log:
        for number in range(50):
            whole_run(log.log, f"r-{number}")
        assert log.log.close(10.0)
        assert len(log.acknowledged) == 50
        assert not log.log.accepting and not log.log.queued(queued("r-late"))
        log.log.ended(ended("r-0"))  # as harmless as it is late
        assert log.log.health()["state"] == "closed"
    with Log(tmp_path) as log:
        assert log.log.health()["rows"] == 50


def test_unfinished_runs_are_handed_to_the_next_daemon(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-done")
        assert log.log.queued(queued("r-waiting", detached=True, options='{"timeout_s":3}'))
        assert log.log.queued(queued("r-going"))
        log.log.started(started("r-going"))
        log.written()
    with Log(tmp_path) as log:
        assert [(left.run.run_id, left.run.state, left.run.detached, left.options, left.input)
                for left in log.log.unfinished()] == [
            ("r-waiting", "queued", True, '{"timeout_s":3}', None), ("r-going", "started", False, None, None)]
        log.log.ended(ended("r-going", state="crashed", code="worker-crashed", result=None))
        log.settle(1)
        assert log.show("r-going").run.state == "crashed"
        assert not log.show("r-going").damaged
    with Log(tmp_path) as log:
        assert [left.run.run_id for left in log.log.unfinished()] == ["r-waiting"]


def test_files_are_private_and_stay_so(tmp_path: Path) -> None:
    def loose() -> list[str]:
        return [file.name for file in tmp_path.iterdir() if stat.S_IMODE(file.stat().st_mode) != 0o600]

    with Log(tmp_path) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
        assert {file.name for file in tmp_path.iterdir()} == {
            "runs.db", "runs.db-wal", "runs.db-shm", "runs.db.mark", "runs.db.reserve"}
        assert loose() == []
    (tmp_path / "runs.db").chmod(0o644)
    with Log(tmp_path) as log:
        assert loose() == []


def test_acknowledgements_come_from_the_writers_thread(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
    assert log.callback_threads == {"run log"} and threading.current_thread().name != "run log"


def test_with_disk_durability_a_commit_does_not_linger(tmp_path: Path) -> None:
    with Log(tmp_path, Settings(durability="disk", linger_s=60.0)) as log:
        whole_run(log.log, "r-1")
        log.settle(1)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="durability"):
        Settings(durability="maybe")
    with pytest.raises(ValueError, match="batch_rows"):
        Settings(batch_rows=0)


def test_what_started_of_detached_runs_is_confirmed_after_the_commit(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        for run_id, detached in (("r-waited-for", False), ("r-1", True), ("r-2", True)):
            assert log.log.queued(queued(run_id, detached=detached))
        log.written()
        assert log.started == []
        log.log.started(started("r-waited-for"))
        log.log.started(started("r-1"))
        log.written()
        assert log.detached == ["r-1", "r-2"] and log.started == ["r-1"]
        assert log.show("r-1").run.state == "started"
        log.log.started(started("r-1", worker_id="w-2"))  # the first died without having read it
        log.written()
        assert log.started == ["r-1", "r-1"]


def test_a_key_keeps_payloads_whole_and_is_there_from_the_first_row(tmp_path: Path) -> None:
    big = b"x" * 2_000_000
    with Log(tmp_path, Settings(capture=False, input_limit_bytes=10, result_limit_bytes=10)) as log:
        assert log.log.queued(queued("r-1", input=big, idempotency_key="k-1", fingerprint="f" * 64))
        log.written()
        waiting = log.show("r-1")
        log.log.started(started("r-1"))
        log.log.ended(ended("r-1", result=big, whole=True))
        log.settle(1)
        detail = log.show("r-1")
    assert (waiting.idempotency_key, waiting.fingerprint) == (detail.idempotency_key, detail.fingerprint)
    assert (detail.idempotency_key, detail.fingerprint) == ("k-1", "f" * 64)
    assert (detail.input, detail.result, detail.damaged) == (big, big, False)


def test_a_black_box_is_kept_and_bounded(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        for run_id, black_box in (("r-1", '{"lines":["a"]}'), ("r-2", "x" * 300_000)):
            assert log.log.queued(queued(run_id))
            log.log.ended(ended(run_id, state="crashed", black_box=black_box))
        log.settle(2)
        kept = [log.show(run_id) for run_id in ("r-1", "r-2")]
    assert [detail.black_box for detail in kept] == ['{"lines":["a"]}', '{"dropped_chars":300000}']
    assert not any(detail.damaged for detail in kept)
