"""Agents that do all they can not to be found by the next daemon: none outlives what becomes of its template.

A module that is preloaded lives in its template, and can do there what it likes: erase the environment that marks it,
not dial again, never give up.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orpheusd.process import sandbox
from tests.daemon import CALL_TIMEOUT_S, ROOT, Daemon, environment, write_agent
from tests.eventually import eventually

NewDaemon = Callable[..., Daemon]

HIDES = """
import ctypes, os, sys, time
from orpheusd.worker.channel import Channel
from orpheusd.worker.redial import Patience

def erase():
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end of proc(5)
    ctypes.memset(start, 0, end - start)

def refuse(self):
    raise OSError("it does not dial again")

redial, Channel.redial = Channel.redial, refuse
Patience.over = property(lambda self: False)
os.environ.clear()
erase()

def handler(input_data):
    return {"pid": os.getpid(), "environ": open("/proc/self/environ").read().strip("\\0")}
"""

#: A child of the template dials in the template's name.
SPEAKS_FOR_IT = HIDES + """
from orpheusd.worker.channel import dial
from orpheusd.wire.worker import Role

frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "_launch"):
    frame = frame.f_back
launch = frame.f_locals["self"]._launch
if os.fork() == 0:
    while True:
        try:
            channel = dial(launch.socket, Role.TEMPLATE, launch.template_id, launch.nonce)
            channel.deliver("workers", {}, b"[]")
            channel.deliver("ready", {})
            while True:
                channel.receive()
        except Exception:  # whatever the daemon's death looks like from in here: it stays
            time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _walls() -> None:
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)


def hidden(daemon: Daemon, folder: Path, code: str = HIDES) -> list[psutil.Process]:
    """What is there of an agent that hides: bubblewrap, what is first inside, and the worker at least."""
    daemon.deploy(write_agent(folder / "hides", code, preload=True))
    result = daemon.call("run", agent="hides", input={})["result"]
    assert result["environ"] == "", "it carries no tag any more"
    outer = [one for one in daemon.family() if one.name() == "bwrap"]
    found = [*outer, *(child for one in outer for child in one.children(recursive=True))]
    assert len(found) >= 3
    return found


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def reloaded(daemon: Daemon) -> None:
    daemon.call("reload")


def killed(daemon: Daemon) -> None:
    daemon.crash()
    daemon.start()


@pytest.mark.parametrize("code", [HIDES, SPEAKS_FOR_IT], ids=["hides", "speaks-for-it"])
@pytest.mark.parametrize("gone", [killed, reloaded])
def test_who_does_not_dial_is_killed_by_the_next_daemon(
    new_daemon: NewDaemon, tmp_path: Path, gone: Callable[[Daemon], None], code: str
) -> None:
    # fault 38
    daemon = new_daemon(http=False)
    before = hidden(daemon, tmp_path, code)
    gone(daemon)
    eventually(lambda: not living(before), 20.0, "the earlier processes to be gone")
    assert daemon.call("run", agent="hides", input={})["result"]["pid"]


@pytest.mark.parametrize("gone", [killed, reloaded])
def test_a_stop_before_they_were_missed_leaves_nobody(
    new_daemon: NewDaemon, tmp_path: Path, gone: Callable[[Daemon], None]
) -> None:
    daemon = new_daemon(http=False)
    before = hidden(daemon, tmp_path)
    gone(daemon)
    assert living(before) == before, "they are still waited for"
    assert daemon.process is not None
    daemon.process.terminate()  # not `stop`, which clears away what is left
    assert daemon.died() == 0
    assert living(before) == []


def test_the_reaper_finds_them(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon(http=False)
    before = hidden(daemon, tmp_path)
    daemon.crash()
    done = subprocess.run(
        [sys.executable, "-m", "orpheusd", "--reap", "--runtime-dir", daemon.runtime_dir, "--state-dir",
         daemon.state_dir], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=CALL_TIMEOUT_S,
        check=False)
    assert done.returncode == 0, done.stderr
    assert living(before) == []
