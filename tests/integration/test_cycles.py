"""Deploying, running and undeploying again and again leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually


def holdings(daemon: Daemon, temporary: Path) -> dict[str, Any]:
    """What the daemon has that could leak: processes, descriptors, mounts, and entries in its directories."""
    process = psutil.Process(daemon.pid)
    places = [daemon.runtime_dir, daemon.state_dir / "tmp", daemon.state_dir / "agents", daemon.state_dir / "venvs",
              temporary]
    return {
        "processes": sorted(child.name() for child in process.children(recursive=True)),
        "descriptors": process.num_fds(),
        "mounts": len(Path(f"/proc/{daemon.pid}/mountinfo").read_text().splitlines()),
        "files": [sorted(path.name for path in place.iterdir()) for place in places],
    }


def cycle(daemon: Daemon, folder: Path, times: int) -> None:
    for turn in range(times):
        daemon.deploy(folder)
        answer = daemon.call("run", agent=folder.name, input={}, session_id=f"s{turn}")
        assert answer["result"] == "there"
        assert answer["session"]["context"] == "new", "an agent that was undeployed remembers no session"
        daemon.call("undeploy", agent=folder.name, purge=turn % 2 == 0 or turn == times - 1)


@pytest.mark.parametrize("times", [
    pytest.param(25, marks=pytest.mark.deadline(60.0)),
    pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.deadline(1800.0)]),
])
def test_cycles_leave_nothing(new_daemon: Callable[..., Daemon], tmp_path: Path, times: int) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    daemon = new_daemon(env={"TMPDIR": str(temporary)})
    folder = write_agent(tmp_path / "comes-and-goes", """
import subprocess
def handler(input_data):
    open("/workspace/left", "w").write("something")
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return "there"
""")
    cycle(daemon, folder, 3)
    before = holdings(daemon, temporary)
    cycle(daemon, folder, times)

    def no_more_than_before() -> bool:
        now = holdings(daemon, temporary)
        # the last call's connection may not have been closed yet when it was counted before
        return now == {**before, "descriptors": min(now["descriptors"], before["descriptors"])}

    eventually(no_more_than_before, what=f"{before}, not {holdings(daemon, temporary)}")
