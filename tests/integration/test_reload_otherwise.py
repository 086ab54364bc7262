"""A reload to a version that hands over in another format is met as a crash is: workers stay, connections end."""

from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.daemon import ROOT, Daemon, command, write_agent
from tests.eventually import eventually

NewDaemon = Callable[..., Daemon]

#: What the daemon finds on the disk when it executes itself anew.
OTHER_FORMAT = """
import orpheusd.handover
orpheusd.handover.FORMAT += 1
"""

COUNTING = """
turns = []

def handler(input_data):
    turns.append(1)
    return len(turns)
"""


def test_the_same_process_goes_on_with_the_workers(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon(env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    daemon.deploy(write_agent(tmp_path / "counting", COUNTING))
    assert daemon.call("run", agent="counting", input={}, session_id="s")["result"] == 1
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    doors = {one for one in daemon.family() if "orpheusd.doors.http" in command(one)}
    (tmp_path / "sitecustomize.py").write_text(OTHER_FORMAT)
    with pytest.raises(EOFError):
        daemon.call("reload")  # who asked for it is not known to the next image either
    eventually(lambda: daemon.log.count("ready: ") == 2, 20, "the next image")
    assert daemon.call("status")["pid"] == daemon.pid
    assert daemon.call("run", agent="counting", input={}, session_id="s")["result"] == 2
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    eventually(lambda: not doors & {*daemon.family()}, 10, "the doors of before to be gone")
    assert psutil.STATUS_ZOMBIE not in {one.status() for one in daemon.family()}
