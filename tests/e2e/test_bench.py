"""The bench runs: not what it measures, but that it still fits the code. The groups that install nothing, briefly."""

import subprocess
import sys

from tests.daemon import ROOT


def rows_of(*groups: str) -> list[str]:
    done = subprocess.run([sys.executable, "-m", "bench", "--quick", *groups], cwd=ROOT, text=True,
                          capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed, see above" not in done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]


def test_the_bench_fills_its_rows() -> None:
    assert len(rows_of("control", "forks", "core")) == 3 + 2 + 5


def test_the_bench_of_a_crowd_fills_its_rows() -> None:
    assert len(rows_of("crowd")) == 4


def test_the_bench_of_greedy_agents_fills_its_rows_and_each_is_told_why() -> None:
    rows = rows_of("greedy")
    assert len(rows) == 2 * 4
    told = [row for row in rows if "what its caller is told" in row]
    assert len(told) == 4
    assert all(row.rstrip("| ").endswith("met") for row in told), told
