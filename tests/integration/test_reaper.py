"""`orpheusd --reap`, which systemd runs after the daemon: a stop leaves nobody, a crash leaves the workers."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.errors import AlreadyRunning
from tests.daemon import CALL_TIMEOUT_S, ROOT, Daemon, environment, write_agent


@pytest.fixture
def crashed(new_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Daemon]:
    """What a daemon leaves that was killed: a template and its worker."""
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "left", "def handler(input_data): return 1"))
    daemon.crash()
    assert daemon.orphans()
    yield daemon


def reap(daemon: Daemon, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orpheusd", "--reap", "--runtime-dir", daemon.runtime_dir, "--state-dir",
         daemon.state_dir], cwd=ROOT, env={**environment(), **env}, capture_output=True, text=True,
        timeout=CALL_TIMEOUT_S, check=False)


@pytest.mark.parametrize("result", ["success", "timeout", None])
def test_a_stop_leaves_nobody(crashed: Daemon, result: str | None) -> None:
    done = reap(crashed, **({"SERVICE_RESULT": result} if result else {}))
    assert done.returncode == 0, done.stderr
    assert "outlived the daemon" in done.stderr
    assert crashed.orphans() == []
    assert not list((crashed.runtime_dir / "born").iterdir())


@pytest.mark.parametrize("result", ["signal", "watchdog"])
def test_a_crash_leaves_the_workers(crashed: Daemon, result: str) -> None:
    left = {process.pid for process in crashed.orphans()}
    assert reap(crashed, SERVICE_RESULT=result).returncode == 0
    assert {process.pid for process in crashed.orphans()} == left


def test_nobody_reaps_under_a_daemon_that_runs(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon(http=False)
    done = reap(daemon)
    assert done.returncode == AlreadyRunning.exit_code
    assert str(daemon.pid) in done.stderr
