"""What is too old or too much is deleted, in small steps, and nothing else is."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from orpheusd.runlog import upkeep
from orpheusd.runlog.queries import RunQuery
from orpheusd.runlog.settings import Settings
from orpheusd.runlog.store import PAGE_BYTES
from orpheusd.runlog.upkeep import TRIM_ROWS
from tests.eventually import eventually
from tests.runlog_kit import Log, ended, queued, started, whole_run

KEEP_ALL = Settings(max_age_s=0, max_bytes=0, check_budget_s=30.0, reserve_bytes=4096)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_S", 0.01)
    monkeypatch.setattr(upkeep, "IDLE_LOOK_S", 0.01)


def write(log: Log, first: int, last: int, **end: object) -> None:
    for number in range(first, last):
        assert log.log.queued(queued(f"r-{number}", input=b"x" * 2000))
        log.log.ended(ended(f"r-{number}", **end))
    log.settle(last)


def test_old_runs_go_and_the_log_is_sound_afterwards(tmp_path: Path) -> None:
    with Log(tmp_path, KEEP_ALL) as log:
        write(log, 0, 600, ended_at=time.time() - 1000)
        write(log, 600, 650)
        assert log.log.queued(queued("r-unfinished", queued_at=0.0))
        log.written()
        assert log.log.health()["rows"] == 651
    with Log(tmp_path, Settings(max_age_s=500, check_budget_s=30.0)) as log:
        eventually(lambda: log.log.health()["rows"] == 51, what="the old runs to go")
        assert [run.run_id for run in log.queries.find(RunQuery(limit=2))] == ["r-unfinished", "r-649"]
        assert log.queries.find(RunQuery(limit=1000))[-1].run_id == "r-600"
    with Log(tmp_path, KEEP_ALL) as log:
        assert log.log.health()["damage"] is None and log.log.health()["rows"] == 51


def test_the_oldest_go_while_there_is_too_much(tmp_path: Path) -> None:
    limit_bytes = 1_000_000
    with Log(tmp_path, Settings(max_bytes=limit_bytes, check_budget_s=30.0)) as log:
        for first in range(0, 3000, 300):
            write(log, first, first + 300)
        eventually(lambda: 0 < log.log.health()["used_bytes"] <= limit_bytes, what="the log to be small enough")
    # Closed, for it may have been counted before the last were written, and one more step be due.
    rows = log.log.health()["rows"]
    # Some are left: it stops when it is small enough, one step of deleting aside.
    assert limit_bytes / 2000 / 2 - TRIM_ROWS < rows < limit_bytes / 2000
    newest = log.queries.find(RunQuery(limit=1000))
    assert [run.run_id for run in newest] == [f"r-{2999 - number}" for number in range(len(newest))]
    assert (tmp_path / "runs.db").stat().st_size < 3 * limit_bytes
    with Log(tmp_path, KEEP_ALL) as log:
        assert log.log.health()["damage"] is None and log.log.health()["rows"] == rows


def test_no_more_goes_than_is_too_much(tmp_path: Path) -> None:
    limit_bytes, result_bytes = 8_000_000, 1_000_000
    least = (limit_bytes - limit_bytes // upkeep.SLACK) // result_bytes - 2
    with Log(tmp_path, Settings(max_bytes=limit_bytes, check_budget_s=30.0)) as log:
        for number in range(3 * least):
            assert log.log.queued(queued(f"r-{number}"))
            log.log.ended(ended(f"r-{number}", result=b"x" * result_bytes))
            log.settle(number + 1)
            # what has just ended is there, whatever had to go for it
            assert log.show(f"r-{number}").result is not None
            assert number < least or log.log.health()["rows"] >= least
        eventually(lambda: 0 < log.log.health()["used_bytes"] <= limit_bytes, what="the log to be small enough")
    assert least <= log.log.health()["rows"] <= limit_bytes // result_bytes


def looked_at(log: Log) -> bool:
    """Whether what the log says that it takes is what it takes now."""
    with closing(sqlite3.connect(log.path)) as connection:
        pages, free_pages = (connection.execute(f"PRAGMA {name}").fetchone()[0]
                             for name in ("page_count", "freelist_count"))
    return bool(log.log.health()["used_bytes"] == (pages - free_pages) * PAGE_BYTES)


def test_the_newest_stay_when_runs_that_wait_are_too_much(tmp_path: Path) -> None:
    with Log(tmp_path, Settings(max_bytes=200_000, check_budget_s=30.0)) as log:
        write(log, 0, 100)
        for number in range(200):
            assert log.log.queued(queued(f"waits-{number}", input=b"x" * 2000))
        log.written()
        eventually(lambda: log.log.health()["rows"] == 200 and looked_at(log), what="the old runs to go")
        for first in (100, 125):
            write(log, first, first + 25)
            # what is done about it is done before the next look
            eventually(lambda: looked_at(log), what="a look at them")
        stored = [run.run_id for run in log.queries.find(RunQuery(limit=50))]
        assert stored == [f"r-{149 - number}" for number in range(50)]
        assert log.log.health()["used_bytes"] > 200_000


def keyed(log: Log, first: int, last: int) -> None:
    for number in range(first, last):
        assert log.log.queued(queued(f"k-{number}", input=b"x" * 2000, idempotency_key=f"{number}", fingerprint="f"))
        log.log.started(started(f"k-{number}"))
        log.log.ended(ended(f"k-{number}"))


def test_a_key_is_kept_when_there_is_too_much(tmp_path: Path) -> None:
    limit_bytes = 1_000_000
    with Log(tmp_path, Settings(max_bytes=limit_bytes, check_budget_s=30.0)) as log:
        keyed(log, 0, 20)
        write(log, 0, 1500)
        keyed(log, 20, 40)
        write(log, 1500, 2500)
        eventually(lambda: 0 < log.log.health()["used_bytes"] <= limit_bytes, what="the log to be small enough")
        asked = [log.queries.asked("my-agent", f"{number}", time.time() - 3600) for number in range(40)]
        assert [found.run.run_id for found in asked if found is not None] == [f"k-{number}" for number in range(40)]
        assert log.queries.show("r-0") is None and log.queries.show("r-2499") is not None
        assert log.queries.asked("my-agent", "0", time.time() + 3600) is None
    with Log(tmp_path, KEEP_ALL) as log:
        assert log.log.health()["damage"] is None


def test_keys_do_not_keep_a_log_from_being_small_enough(tmp_path: Path) -> None:
    limit_bytes = 1_000_000
    with Log(tmp_path, Settings(max_bytes=limit_bytes, check_budget_s=30.0)) as log:
        for first in range(0, 2000, 200):
            keyed(log, first, first + 200)
            write(log, first, first + 20)
        eventually(lambda: 0 < log.log.health()["used_bytes"] <= limit_bytes, what="the log to be small enough")
        assert log.queries.show("k-0") is None and log.queries.show("k-1999") is not None
        assert log.queries.show("r-1819") is not None, "who has no key is not the first to go"


def test_empty_pages_are_given_back(tmp_path: Path) -> None:
    with Log(tmp_path, KEEP_ALL) as log:
        write(log, 0, 2000, ended_at=time.time() - 1000)
    before = (tmp_path / "runs.db").stat().st_size
    with Log(tmp_path, Settings(max_age_s=500, check_budget_s=30.0)) as log:
        eventually(lambda: log.log.health()["rows"] == 0, what="the old runs to go")

        def few_are_empty() -> bool:
            connection = sqlite3.connect(log.path)
            ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
            connection.close()
            return bool(free <= upkeep.GIVE_BACK_PAGES)

        eventually(few_are_empty, what="empty pages to be given back")
    assert (tmp_path / "runs.db").stat().st_size < before / 4


def test_numbers_are_not_used_again(tmp_path: Path) -> None:
    with Log(tmp_path, Settings(max_age_s=500, check_budget_s=30.0)) as log:
        write(log, 0, 10, ended_at=time.time() - 1000)
        eventually(lambda: log.log.health()["rows"] == 0, what="the old runs to go")
    with Log(tmp_path, KEEP_ALL) as log:
        whole_run(log.log, "r-next")
        log.settle(1)
        assert log.show("r-next").run.seq == 11


def test_a_clock_that_was_set_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fault 51
    wall = time.time
    with Log(tmp_path, Settings(max_age_s=500, check_budget_s=30.0)) as log:
        write(log, 0, 10)
        monkeypatch.setattr(upkeep.time, "time", lambda: wall() + 100_000.0)
        write(log, 10, 20)
        looked = log.log._writer._upkeep._next_look
        eventually(lambda: log.log._writer._upkeep._next_look > looked + 0.1, what="some looks at the age")
        assert log.log.health()["rows"] == 20


def test_writing_goes_on_between_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Log(tmp_path, KEEP_ALL) as log:
        write(log, 0, 3000, ended_at=time.time() - 1000)
    monkeypatch.setattr(upkeep, "TRIM_ROWS", 8)
    with Log(tmp_path, Settings(max_age_s=500, check_budget_s=30.0)) as log:
        whole_run(log.log, "r-new")
        log.settle(1)
        assert log.log.health()["rows"] > 100
