"""A real process writes the log and is killed at any point: what it was acknowledged is there, and the chain holds."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orpheusd.runlog.queries import RunQueries
from orpheusd.runlog.schema import connect_reader
from orpheusd.runlog.verify import verify
from tests.runlog_kit import Log, whole_run

#: Acknowledgements after which each kill comes: at once, within the first commits, and later.
KILLS = (1, 2, 3, 5, 8, 20, 50, 100, 150, 200, 250, 300, 400)
BUSY_KILLS = (1, 30, 100, 300, 600, 1000, 1500)


def write_until_killed(folder: Path, first: int, acknowledgements: int, *how: str) -> list[str]:
    """The ids that were acknowledged, read to the last one the kernel has."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.runlog_child", "endless", str(folder), str(first), *how],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    lines: list[bytes] = []
    with child.stdout:
        while len(lines) < acknowledgements:
            line = child.stdout.readline()
            assert line, f"the child ended with {child.wait(10)}"
            lines.append(line)
        child.kill()
        lines += child.stdout.readlines()
    assert child.wait(10) == -9
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]


def check_whole(folder: Path) -> int:
    """Reads everything, as a second process would; the number of runs."""
    found = verify(folder / "runs.db")
    assert found.problem == "" and found.whole and found.head is not None
    return found.head.row_count


def stored(folder: Path) -> dict[str, tuple[str, bytes | None]]:
    """State and result of every run in the log."""
    connection = connect_reader(folder / "runs.db")
    rows = connection.execute("SELECT run_id, state, result FROM runs").fetchall()
    connection.close()
    runs = {run_id: (state, result) for run_id, state, result in rows}
    assert len(runs) == len(rows)
    return runs


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    # fault 35; the other half of 30 to 33
    acknowledged: list[str] = []
    for number, kill in enumerate(KILLS):
        acknowledged += write_until_killed(tmp_path, number * 1_000_000, kill)
        runs = stored(tmp_path)
        assert check_whole(tmp_path) == len(runs)
        for run_id in acknowledged:
            # Those that the child before left unfinished were settled by this one.
            assert runs[run_id] in (("completed", run_id[2:].encode()), ("crashed", None))
    assert len(set(acknowledged)) == len(acknowledged)
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None and log.log.health()["checked"] == "whole"
        assert {left.run.run_id for left in log.log.unfinished()}.isdisjoint(acknowledged)
        assert log.log.health()["rows"] == len(runs)


def test_a_kill_during_upkeep_leaves_the_log_whole(tmp_path: Path) -> None:
    # fault 35: while it checkpoints and deletes old runs
    for number, kill in enumerate(BUSY_KILLS):
        acknowledged = write_until_killed(tmp_path, number * 1_000_000, kill, "busy")
        assert check_whole(tmp_path) > 0
        # The newest are never what is deleted.
        queries = RunQueries(tmp_path / "runs.db")
        newest = queries.show(acknowledged[-1])
        assert newest is not None and newest.run.ended_at is not None
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None


#: Where it is killed, and in how busy a log. One that always has something to delete gives back little.
POINTS = [
    *itertools.product(("runlog-committing", "runlog-committed"), ("plain", "busy"), (1, 2, 20)),
    *itertools.product(("runlog-checkpointed", "runlog-trimming"), ("busy",), (1, 2, 20)),
    *itertools.product(("runlog-given-back",), ("busy",), (1, 2)),
]


@pytest.mark.parametrize(("point", "how", "passing"), POINTS)
def test_a_kill_at_the_point_leaves_the_log_whole(tmp_path: Path, point: str, how: str, passing: int) -> None:
    # fault 35
    with Log(tmp_path) as log:
        # a quarter of the file is empty once these are deleted, and only then pages are given back
        for number in range(100):
            whole_run(log.log, f"r-large-{number}", result=b"1" * 20_000)
        log.settle(100)
    child = subprocess.run(
        [sys.executable, "-m", "tests.runlog_child", "endless", str(tmp_path), "0", how], capture_output=True,
        env={**os.environ, "ORPHEUS_FAILPOINTS": f"{point}=kill:{passing}"},
        cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert child.returncode == -9, child.stderr
    check_whole(tmp_path)
    acknowledged = child.stdout.decode().split()
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None and log.log.health()["checked"] == "whole"
        # a busy one deletes what has ended
        assert how == "busy" or all(log.show(run_id).run.state == "completed" for run_id in acknowledged)


@pytest.mark.slow
@pytest.mark.deadline(900)
@pytest.mark.parametrize("how", [(), ("busy",)], ids=["plain", "busy"])
def test_two_hundred_kills(tmp_path: Path, how: tuple[str, ...]) -> None:
    # fault 35, the long form
    for number in range(200):
        # A new log now and then: reading all of it takes longer than writing it.
        folder = tmp_path / str(number // 10)
        folder.mkdir(exist_ok=True)
        acknowledged = write_until_killed(folder, number * 1_000_000, 1 + number * 37 % 1500, *how)
        assert check_whole(folder) > 0
        assert RunQueries(folder / "runs.db").show(acknowledged[-1]) is not None
