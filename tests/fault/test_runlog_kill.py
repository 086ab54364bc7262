"""A real process writes the log and is killed at any point: what it was acknowledged is there, and the chain holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from orpheusd.runlog.queries import RunQueries
from orpheusd.runlog.schema import connect_reader
from orpheusd.runlog.verify import verify
from tests.runlog_kit import Log

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
    # fault 35: while it checkpoints, deletes old runs and gives back pages
    for number, kill in enumerate(BUSY_KILLS):
        acknowledged = write_until_killed(tmp_path, number * 1_000_000, kill, "busy")
        assert check_whole(tmp_path) > 0
        # The newest are never what is deleted.
        queries = RunQueries(tmp_path / "runs.db")
        newest = queries.show(acknowledged[-1])
        assert newest is not None and newest.run.ended_at is not None
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None


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
