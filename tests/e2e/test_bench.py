"""The bench runs: not what it measures, but that it still fits the code. The groups that install nothing, briefly."""

import subprocess
import sys

from tests.daemon import ROOT


def test_the_bench_fills_its_rows() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "--quick", "control", "forks", "core"], cwd=ROOT, text=True,
                          capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 + 2 + 4, done.stdout
    assert "failed" not in done.stdout
