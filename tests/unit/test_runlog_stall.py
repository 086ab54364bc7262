"""When the disk does not keep up: new runs are refused, those under way are kept, and it goes on by itself."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orpheusd.runlog.batch import Batch
from orpheusd.runlog.handover import Handover
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually
from tests.runlog_kit import Log, ended, queued, started, whole_run

SMALL = Settings(pending_changes=20, retry_s=0.01, check_budget_s=30.0, reserve_bytes=4096)


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """Nobody can write to the database meanwhile."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def test_a_stall_refuses_new_runs_and_keeps_the_others(tmp_path: Path) -> None:
    with Log(tmp_path, SMALL) as log:
        whole_run(log.log, "r-before")
        log.settle(1)
        with stalled(log.path):
            taken = 0
            while log.log.queued(queued(f"r-{taken}")):
                taken += 1
            # As many as there is room for, unless the writer noticed the lock before.
            assert taken <= SMALL.pending_changes
            assert not log.log.accepting and log.log.problem
            for number in range(taken):
                log.log.started(started(f"r-{number}"))
                log.log.ended(ended(f"r-{number}"))
            eventually(lambda: log.log.health()["state"] == "locked", what="the lock to be noticed")
            assert log.acknowledged == ["r-before"]
            assert log.log.health()["pending_changes"] == 3 * taken
        log.settle(1 + taken)
        eventually(lambda: log.log.accepting, what="new runs to be accepted again")
        assert log.log.problem == ""
        assert log.failures == [] and log.log.health()["problem"] == ""


def test_large_inputs_fill_the_room_too(tmp_path: Path) -> None:
    settings = Settings(pending_bytes=100_000, retry_s=0.01, check_budget_s=30.0)
    with Log(tmp_path, settings) as log, stalled(log.path):
        assert log.log.queued(queued("r-1", input=b"x" * 60_000))
        assert log.log.queued(queued("r-2", input=b"x" * 60_000))
        assert not log.log.queued(queued("r-3"))


def test_closing_during_a_stall_takes_no_longer_than_allowed(tmp_path: Path) -> None:
    with Log(tmp_path, SMALL) as log:
        with stalled(log.path):
            whole_run(log.log, "r-1")
            began = time.monotonic()
            assert not log.log.close(0.2)
            assert time.monotonic() - began < 2.0
            assert log.acknowledged == []
    assert log.log._writer.stopped


def test_one_commit_is_bounded_in_rows_and_bytes() -> None:
    handover = Handover(4)
    for number in range(10):
        handover.put(queued(f"r-{number}"), 18)
    batch = Batch(4, 1_000_000)
    handover.take(batch)
    assert len(batch.stories) == 4 and len(handover) == 6
    by_size = Batch(100, 30)
    handover.take(by_size)
    assert len(by_size.stories) == 2
    repeats = Batch(4, 1_000_000)
    for _ in range(100):
        handover.put(queued("r-same"), 18)
    while len(handover):
        repeats = Batch(4, 1_000_000)
        handover.take(repeats)
        assert repeats.change_count <= 16
    handover.close()


def test_the_taker_is_woken_by_the_first_and_by_the_one_that_fills_a_batch() -> None:
    handover = Handover(3)
    handover.put(queued("r-1"), 0)
    handover.wait(30.0)
    handover.put(queued("r-2"), 0)
    handover.put(queued("r-3"), 0)
    handover.wait(30.0)
    began = time.monotonic()
    handover.linger(30.0)
    assert time.monotonic() - began < 10.0
    handover.close()


def test_lingering_ends_when_there_will_be_no_more() -> None:
    handover = Handover(3)
    handover.put(queued("r-1"), 0)
    handover.hurry()
    began = time.monotonic()
    handover.linger(30.0)
    assert time.monotonic() - began < 10.0
    handover.close()
