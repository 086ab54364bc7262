"""A disk that is full, and one that fails: the first is waited out, the second ends the log at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually
from tests.fault.disks import fill_up, mounted
from tests.fault.shims import built
from tests.runlog_kit import Log, ended, queued, started, whole_run

RESERVE_BYTES = 512 * 1024
SMALL = Settings(reserve_bytes=RESERVE_BYTES, retry_s=0.01, check_budget_s=30.0)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with mounted(tmp_path / "disk", 4 * 1024 * 1024) as folder:
        yield folder


@pytest.mark.root
def test_a_full_disk_is_waited_out(small_disk: Path) -> None:
    # fault 47
    with Log(small_disk, SMALL) as log:
        whole_run(log.log, "r-before")
        log.settle(1)
        filler = fill_up(small_disk)
        running = 0
        while log.log.queued(queued(f"r-{running}", input=b"x" * 20_000)):
            log.log.started(started(f"r-{running}"))
            running += 1
            eventually(lambda: log.log.health()["state"] != "ok" or not log.log.health()["pending_changes"])
        eventually(lambda: log.log.health()["state"] == "disk-full", what="the full disk to be noticed")
        assert "full" in log.log.health()["problem"]
        assert not log.log.queued(queued("r-refused"))
        # Those under way are recorded in the space that was held back.
        for number in range(running):
            log.log.ended(ended(f"r-{number}"))
        log.settle(1 + running)
        assert log.log.health()["state"] == "disk-full"
        filler.unlink()
        eventually(lambda: log.log.accepting, what="new runs to be accepted again")
        whole_run(log.log, "r-after")
        log.settle(2 + running)
        assert log.failures == []
        assert (small_disk / "runs.db.reserve").stat().st_size == RESERVE_BYTES
    with Log(small_disk, SMALL) as log:
        assert log.log.health()["damage"] is None and log.log.health()["rows"] == 2 + running


@pytest.mark.root
def test_with_no_space_left_at_all_nothing_is_acknowledged_and_nothing_lost(small_disk: Path) -> None:
    # fault 47
    with Log(small_disk, Settings(reserve_bytes=0, retry_s=0.01, check_budget_s=30.0)) as log:
        for number in range(10):
            assert log.log.queued(queued(f"r-{number}"))
        log.written()
        filler = fill_up(small_disk)
        # More than the WAL can hold without growing.
        for number in range(10):
            log.log.ended(ended(f"r-{number}", result=b"y" * 100_000))
        eventually(lambda: log.log.health()["state"] == "disk-full", what="the full disk to be noticed")
        assert log.acknowledged == [] and log.log.health()["pending_changes"] == 10
        filler.unlink()
        log.settle(10)
        eventually(lambda: log.log.accepting, what="new runs to be accepted again")
        assert all(log.show(f"r-{number}").result == b"y" * 100_000 for number in range(10))


@pytest.mark.root
def test_closing_on_a_full_disk_says_what_was_lost(small_disk: Path) -> None:
    with Log(small_disk, Settings(reserve_bytes=0, retry_s=0.01, check_budget_s=30.0)) as log:
        assert log.log.queued(queued("r-1"))
        log.written()
        filler = fill_up(small_disk)
        log.log.ended(ended("r-1", result=b"y" * 500_000))
        eventually(lambda: log.log.health()["state"] == "disk-full", what="the full disk to be noticed")
        assert not log.log.close(0.1)
        assert log.acknowledged == []
    filler.unlink()
    with Log(small_disk, SMALL) as log:
        assert log.log.health()["damage"] is None
        assert [left.run.run_id for left in log.log.unfinished()] == ["r-1"]


@pytest.mark.root
def test_a_log_cannot_begin_on_a_full_disk(small_disk: Path) -> None:
    fill_up(small_disk)
    with pytest.raises(OrpheusError, match=r"cannot open the run log .*(full|space)"):
        RunLog.open(small_disk / "runs.db", SMALL, print, print)


@pytest.mark.root
def test_a_log_without_room_for_its_reserve_waits_for_it(small_disk: Path) -> None:
    with Log(small_disk, SMALL) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
    filler = fill_up(small_disk, leave_bytes=RESERVE_BYTES // 2)
    with Log(small_disk, SMALL) as log:
        assert not log.log.accepting and log.log.health()["state"] == "disk-full"
        assert not (small_disk / "runs.db.reserve").exists()
        filler.unlink()
        eventually(lambda: log.log.accepting, what="new runs to be accepted")


@pytest.fixture(scope="module")
def failing_fsync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("fsync_fails", tmp_path_factory.mktemp("shim"))


def test_a_failed_fsync_ends_the_log_and_is_never_tried_again(tmp_path: Path, failing_fsync: Path) -> None:
    # fault 48
    flag = tmp_path / "fail"
    done = subprocess.run(
        [sys.executable, "-m", "tests.runlog_child", "failing", str(tmp_path), str(flag)], cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(failing_fsync), "FSYNC_FAILS": str(flag)},
        capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    assert len(told["failures"]) == 1 and "disk I/O error" in told["failures"][0]
    assert told["acknowledged"] == 20, "a run was acknowledged that may not be on the disk"
    assert (told["state"], told["accepting"], told["closed"]) == ("failed", False, False)
    before, after = done.stderr.split("the disk fails now\n")
    assert "sync\n" in before and "sync failed" not in before
    # Not by a retry, not by closing, not by the end of the process.
    assert after == "sync failed\n"
    # What had been acknowledged is there for the next daemon.
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None
        assert all(log.show(f"r-{number}").run.state == "completed" for number in range(20))
