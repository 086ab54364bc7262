"""Every change leaves a line in the audit log, whoever asked and however it ended."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.operations import OPERATIONS, Access
from tests.daemon import ROOT, Daemon, write_agent
from tests.eventually import eventually

ECHO = "def handler(input_data):\n    return input_data\n"
SECRET = "planted-7f3a9"


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    path = daemon.state_dir / "audit.log"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_change_is_told_with_who_what_and_the_end(daemon: Daemon, tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "audited", ECHO, env=["KEY"])
    before = len(lines(daemon))
    done = daemon.ctl("deploy", str(folder), env={"KEY": SECRET})
    assert done.returncode == 0, done.stderr
    daemon.call("run", agent="audited", input=SECRET)
    told = eventually(lambda: [row for row in lines(daemon)[before:] if row["operation"] == "deploy"])[0]
    assert (told["agent"], told["outcome"], told["source"]) == ("audited", "done", "ctl")
    assert told["uid"] == os.getuid() and told["pid"] > 1 and len(told["params"]) == 64
    assert Path(told["exe"]) == Path(sys.executable).resolve()
    assert [row["operation"] for row in lines(daemon)[before:]] == ["bundle.put", "bundle.inspect", "deploy"]
    assert SECRET not in (daemon.state_dir / "audit.log").read_text()


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.access is Access.ADMIN],
                         ids=lambda one: one.name)
def test_a_change_that_is_refused_is_told_too(daemon: Daemon, operation: Any) -> None:
    # every one of the table: one that is added is held to it
    before = len(lines(daemon))
    with pytest.raises(OrpheusError) as refused:
        daemon.call(operation.name, agent="absent", no_such_parameter=SECRET)
    told = eventually(lambda: lines(daemon)[before:])
    assert [(row["operation"], row["outcome"]) for row in told] == [(operation.name, refused.value.code)]
    assert SECRET not in (daemon.state_dir / "audit.log").read_text()


def test_who_does_not_wait_for_the_end_is_told_all_the_same(daemon: Daemon, tmp_path: Path) -> None:
    daemon.deploy(write_agent(tmp_path / "left-alone", ECHO))
    before = len(lines(daemon))
    asks = "import sys; from tests.daemon import Control; one = Control(sys.argv[1]); one.call('health'); " \
           "one.send('restart', agent='left-alone')"
    subprocess.run([sys.executable, "-c", asks, str(daemon.control_socket)], cwd=ROOT, check=True, timeout=30)
    told = eventually(lambda: [row for row in lines(daemon)[before:] if row["operation"] == "restart"])[0]
    assert told["outcome"] == "done"
    assert Path(told["exe"]) == Path(sys.executable).resolve()


def test_what_is_no_name_of_an_agent_is_not_told(daemon: Daemon) -> None:
    before = len(lines(daemon))
    with pytest.raises(OrpheusError):
        daemon.call("undeploy", agent=SECRET.upper() * 100_000)
    told = eventually(lambda: [row for row in lines(daemon)[before:] if row["operation"] == "undeploy"])
    assert [(row["agent"], row["outcome"]) for row in told] == [(None, "invalid-request")]


def test_reading_and_running_is_not_told(daemon: Daemon) -> None:
    before = len(lines(daemon))
    for name in ("status", "agent.list", "health"):
        daemon.call(name)
    with pytest.raises(OrpheusError):
        daemon.call("undeploy", agent="absent")
    told = eventually(lambda: lines(daemon)[before:])
    assert [row["operation"] for row in told] == ["undeploy"]


def test_a_reload_is_told_by_the_next_image(new_daemon: Callable[..., Daemon]) -> None:
    house = new_daemon()
    assert house.ctl("reload").returncode == 0
    [told] = eventually(lambda: lines(house))
    assert (told["operation"], told["outcome"], told["uid"]) == ("reload", "done", os.getuid())


@pytest.mark.root
def test_a_stranger_is_told(daemon: Daemon) -> None:
    before = len(lines(daemon))
    for place in (daemon.directory, daemon.runtime_dir, daemon.control_socket):
        place.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(daemon.control_socket))
                sock.recv(1000)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    [told] = eventually(lambda: lines(daemon)[before:])
    assert (told["operation"], told["outcome"], told["uid"]) == ("connect", "permission-denied", 65534)
