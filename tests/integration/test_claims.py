"""What a daemon asks of the kernel's scheduler for itself and its workers, as the kernel tells it."""

import os
import re
from pathlib import Path

import pytest

from orpheusd.process.claims import AUTOGROUP_NICE, TURN_NS
from tests.daemon import Daemon, write_agent


def told(pid: int, file: str, pattern: str) -> int:
    path = Path(f"/proc/{pid}/{file}")
    found = re.search(pattern, path.read_text()) if path.exists() else None
    if found is None:
        pytest.skip(f"this kernel does not tell in {path}")
    return int(found[1])


def turn_ns(pid: int) -> int:
    return told(pid, "sched", r"se\.slice\s*:\s*(\d+)")


def test_the_daemon_and_all_it_starts_take_short_turns(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "brief", "def handler(input_data): return 1"))
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("Linux before 6.12 gives turns as it likes")
    family = [process.pid for process in daemon.family()]
    assert len(family) > 2
    assert {turn_ns(pid) for pid in (daemon.pid, *family)} == {TURN_NS}
    assert turn_ns(os.getpid()) != TURN_NS


@pytest.mark.root
def test_the_daemon_comes_before_its_agents(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "later", "def handler(input_data): return 1"))
    worker = daemon.call("agent.show", agent="later")["workers"][0]["pid"]
    shares = [told(pid, "autogroup", r"nice (-?\d+)") for pid in (daemon.pid, worker)]
    assert shares == [AUTOGROUP_NICE, 0]
