"""A daemon on listening sockets that somebody else holds, as systemd does: who comes between two daemons waits."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import EXIT_FAULT
from tests.daemon import CALL_TIMEOUT_S, ROOT, STOP_TIMEOUT_S, Control, Daemon, environment, free_port, write_agent
from tests.eventually import eventually
from tests.integration.test_reload_otherwise import OTHER_FORMAT

#: The descriptors are moved to where systemd puts them, and the daemon finds its own pid in LISTEN_PID.
LAUNCH = 'exec 3<&"$1" 4<&"$2" 5<&"$3"; shift 3; LISTEN_PID=$$ LISTEN_FDS=3 exec "$@"'

SLOW = """
import time

def handler(input_data):
    time.sleep(input_data.get("s", 0))
    return "done"
"""


class Giver:
    """Holds all doors and hears what the daemon says, as systemd would. `start` may follow `stop`."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.directory = directory
        (directory / "run").mkdir(parents=True)
        port = free_port()
        self.http = [stack.enter_context(socket.create_server((host, port), family=family))
                     for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))]
        self.control = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.control.bind(str(directory / "run/ctl.sock"))
        self.control.listen()
        self.heard = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.heard.bind(str(directory / "notify"))
        self.heard.settimeout(CALL_TIMEOUT_S)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        """Returns when the daemon has said that it is ready."""
        fds = (self.control.fileno(), *(sock.fileno() for sock in self.http))
        argv = [sys.executable, "-m", "orpheusd", "--state-dir", str(self.directory / "state"),
                "--runtime-dir", str(self.directory / "run")]
        with (self.directory / "orpheusd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", LAUNCH, "sh", *map(str, fds), *argv], cwd=ROOT, pass_fds=fds, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**environment(), "NOTIFY_SOCKET": str(self.directory / "notify"), **env})
        assert self.hear("READY=1").partition("\n")[2].startswith("STATUS=ready: ")

    def hear(self, word: str) -> str:
        """The next thing that the daemon says with that word in it."""
        while True:
            said = self.heard.recv(4096).decode()
            if word in said.split("\n"):
                return said

    def stop(self) -> int:
        """Its exit code. Raises AssertionError when a door had to be killed."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(STOP_TIMEOUT_S)
        assert "a front door did not leave" not in (self.directory / "orpheusd.log").read_text()
        return code

    def ask(self, agent: str, at: int = 0, **input: Any) -> int:
        """The status of one run over HTTP, at one of its addresses."""
        caller = http.client.HTTPConnection(*self.http[at].getsockname()[:2], timeout=CALL_TIMEOUT_S)
        caller.request("POST", f"/v1/agents/{agent}/run", json.dumps({"input": input}),
                       {"Content-Type": "application/json", "Host": "localhost"})
        response = caller.getresponse()
        response.read()
        caller.close()
        return response.status


@pytest.fixture
def giver(tmp_path: Path) -> Iterator[Giver]:
    # the daemon's directories are short ones: see tests/daemon.py
    daemon = Daemon(http=False)
    with ExitStack() as stack:
        stack.callback(daemon.close)
        one = Giver(stack, daemon.directory)
        try:
            one.start(WATCHDOG_USEC="400000")
            daemon.deploy(write_agent(tmp_path / "handed", SLOW))
            yield one
        finally:
            if one.process is not None and one.process.poll() is None:
                one.stop()


def in_thread(call: Callable[[], int], told: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: told.append(call()))
    thread.start()
    return thread


def test_a_reload_takes_the_sockets_for_what_they_are(giver: Giver) -> None:
    """`http` is localhost:7777 unless it is set, and does nothing here: the door is where its sockets are."""
    for _ in range(2):
        control = Control(giver.directory / "run/ctl.sock")
        assert control.call("reload")["pid"] == (giver.process.pid if giver.process is not None else None)
        assert control.call("status")["http"] == f"localhost:{giver.http[0].getsockname()[1]}"
        control.close()
        assert [giver.ask("handed", at) for at in (0, 1)] == [200, 200]


def test_it_says_that_it_lives_and_that_it_stops(giver: Giver) -> None:
    giver.hear("WATCHDOG=1")
    giver.hear("WATCHDOG=1")
    assert giver.process is not None
    giver.process.terminate()
    assert "STATUS=stopping" in giver.hear("STOPPING=1")
    assert giver.process.wait(STOP_TIMEOUT_S) == 0


def test_who_comes_between_two_daemons_is_served_by_the_second(giver: Giver) -> None:
    assert giver.stop() == 0
    told: list[int] = []
    waiting = [in_thread(partial(giver.ask, "handed", at), told) for at in (0, 1, 1)]
    with Control(giver.directory / "run/ctl.sock") as control:
        asked = control.send("health")
        giver.start()
        assert control.receive()["id"] == asked
    for thread in waiting:
        thread.join(CALL_TIMEOUT_S)
    assert told == [200] * 3


def test_who_was_accepted_is_answered_although_the_daemon_stops(giver: Giver) -> None:
    """More runs than workers: those that wait for one are executed too."""
    told: list[int] = []
    waiting = [in_thread(lambda: giver.ask("handed", s=0.5), told) for _ in range(14)]
    with Control(giver.directory / "run/ctl.sock") as control:
        eventually(lambda: len(control.call("run.list", agent="handed")["runs"]) == 14, 10, "14 runs")
    assert giver.stop() == 0
    for thread in waiting:
        thread.join(CALL_TIMEOUT_S)
    assert told == [200] * 14


def test_its_http_door_hears_nothing_of_systemd(giver: Giver) -> None:
    assert giver.process is not None
    doors = [pid for pid in Path(f"/proc/{giver.process.pid}/task/{giver.process.pid}/children").read_text().split()
             if b"orpheusd.doors.http" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert doors
    for pid in doors:
        names = {item.partition(b"=")[0] for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
        assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"LISTEN_PID", b"LISTEN_FDS"}, os.fsdecode(pid)


def test_where_systemd_has_the_sockets_it_is_started_with_them_anew(giver: Giver) -> None:
    assert giver.stop() == 0
    giver.start(PYTHONPATH=f"{giver.directory}:{ROOT}")
    (giver.directory / "sitecustomize.py").write_text(OTHER_FORMAT)
    assert giver.process is not None
    with Control(giver.directory / "run/ctl.sock") as control, pytest.raises(EOFError):
        control.call("reload")
    assert giver.process.wait(STOP_TIMEOUT_S) == EXIT_FAULT
    giver.start()
    assert [giver.ask("handed", at) for at in (0, 1)] == [200, 200]
