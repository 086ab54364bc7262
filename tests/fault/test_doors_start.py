"""What is in the way of a daemon that starts. Faults 56 to 58 and 72."""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest

from orpheusd.config import http_name
from orpheusd.doors.place import SUN_PATH_BYTES, TEMPLATE_BYTES
from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness

NewDaemon = Callable[..., Daemon]

QUICKLY = "def handler(input_data):\n    effect()\n    return secret(input_data)\n"


def deploy(daemon: Daemon, folder: Path) -> str:
    daemon.deploy(witness(folder, QUICKLY))
    eventually(lambda: daemon.call("agent.stats", agent=folder.name)["workers"]["healthy"] == 1, timeout_s=20)
    return folder.name


def refused(daemon: Daemon) -> tuple[int, str]:
    """Exit code and words of a daemon that cannot start."""
    before = len(daemon.log)
    with daemon.spawn() as process:
        try:
            code = process.wait(20)
        finally:
            process.kill()
    return code, daemon.log[before:]


def test_of_two_daemons_with_one_directory_the_second_leaves(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 56
    first = new_daemon()
    agent = deploy(first, tmp_path / "shared")
    rivals = [Daemon(directory=first.directory), Daemon(http=False, directory=tmp_path)]
    rivals[1].state_dir = first.state_dir
    with Aftermath(first) as after:
        for rival in rivals:
            code, words = refused(rival)
            assert code == 100 and f"already running on {first.state_dir} (pid {first.pid})" in words
        third = Daemon(http=False, directory=tmp_path / "third")
        (tmp_path / "third").mkdir()
        third.runtime_dir = first.runtime_dir
        code, words = refused(third)
        assert code == 100 and f"already running on {first.runtime_dir} (pid {first.pid})" in words
        assert after.run(agent, session_id="s").context == "new"
        assert after.run(agent, session_id="s").context == "warm"


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.deadline(300)])])
def test_of_many_that_start_at_once_one_serves(new_daemon: NewDaemon, rounds: int) -> None:
    # fault 56
    daemon = new_daemon(http=False)
    for _ in range(rounds):
        daemon.kill()
        with ExitStack() as stack:
            rivals = [stack.enter_context(daemon.spawn()) for _ in range(5)]
            for rival in rivals:
                stack.callback(rival.kill)
            eventually(partial(_all_but_one_left, rivals), timeout_s=30)
            eventually(partial(_healthy, daemon), timeout_s=20)
            assert [one.pid for one in rivals if one.poll() is None] == [daemon.call("status")["pid"]]
        daemon.start()


def _healthy(daemon: Daemon) -> bool:
    try:
        return bool(daemon.call("health")["status"] == "ok")
    except (OSError, EOFError):
        return False


def _all_but_one_left(rivals: "list[subprocess.Popen[bytes]]") -> bool:
    return [one.poll() for one in rivals].count(100) == len(rivals) - 1


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.deadline(300)])])
def test_after_a_kill_the_next_one_serves_at_once(new_daemon: NewDaemon, tmp_path: Path, rounds: int) -> None:
    # faults 56, 57: neither the lock nor the socket of the dead one is in the way
    daemon = new_daemon()
    agent = deploy(daemon, tmp_path / "again")
    for _ in range(rounds):
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        daemon.process = None
        assert daemon.control_socket.is_socket(), "it is left behind"
        daemon.start()
        eventually(lambda: daemon.call("agent.stats", agent=agent)["workers"]["healthy"] == 1, timeout_s=20)
        with Aftermath(daemon) as after:
            assert after.run(agent).code == ""


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_directory(path: Path) -> None:
    path.mkdir()
    a_file(path / "inside")


def a_link_to_a_file(path: Path) -> None:
    a_file(path.with_name("target"))
    path.symlink_to("target")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [a_file, a_directory, a_link_to_a_file, a_link_to_nothing])
def test_what_is_no_socket_is_left_in_its_place(new_daemon: NewDaemon, tmp_path: Path,
                                                make: Callable[[Path], None]) -> None:
    # fault 57
    daemon = new_daemon(http=False)
    agent = deploy(daemon, tmp_path / "placed")
    daemon.stop()
    make(daemon.control_socket)
    before = snapshot(daemon.runtime_dir)
    code, words = refused(daemon)
    assert code == 1 and "is not a socket" in words and str(daemon.control_socket) in words
    assert snapshot(daemon.runtime_dir) == before, "nothing was replaced, and no template started"
    daemon.control_socket.rename(tmp_path / "aside")
    daemon.start()
    assert daemon.call("run", agent=agent, input={})["result"] is None


def snapshot(folder: Path) -> list[tuple[str, str]]:
    return sorted((str(path), path.read_text() if path.is_file() else str(path.is_symlink()))
                  for path in folder.rglob("*") if path.name != "lock")


def test_a_port_in_use_is_named_with_its_holder_before_anything_starts(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 58
    daemon = new_daemon()
    deploy(daemon, tmp_path / "ported")
    daemon.stop()
    assert daemon.http is not None
    before = snapshot(daemon.runtime_dir)
    with socket.create_server(("127.0.0.1", int(daemon.http.rpartition(":")[2]))):
        code, words = refused(daemon)
    assert code == 98
    assert f"pid {os.getpid()} ({psutil.Process().name()})" in words and "--no-http" in words
    assert snapshot(daemon.runtime_dir) == before
    daemon.start()


#: A child of the worker wants the daemon's port, and has it as soon as the daemon is gone.
SQUATS = """
import socket, time

def handler(input_data):
    if os.fork():
        return None
    os.setsid()
    while True:
        try:
            host = input_data["host"]
            door = socket.create_server(
                (host, input_data["port"]), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError:
            time.sleep(0.01)
        else:
            while True:
                with door.accept()[0] as client:
                    client.sendall(b"the agent")
"""


@pytest.mark.parametrize(("isolation", "host"), [("auto", "127.0.0.1"), ("auto", "::1"), ("none", "127.0.0.1")])
def test_an_agent_that_took_the_port_is_ended_and_the_others_go_on(
    new_daemon: NewDaemon, tmp_path: Path, isolation: str, host: str
) -> None:
    # fault 58
    daemon = new_daemon(isolation=isolation)
    assert daemon.http is not None
    port = int(daemon.http.rpartition(":")[2])
    daemon.deploy(witness(tmp_path / "squats", SQUATS))
    innocent = deploy(daemon, tmp_path / "innocent")
    daemon.call("run", agent="squats", input={"host": host, "port": port})
    daemon.call("run", agent=innocent, input={"secret": "kept"}, session_id="s")
    daemon.crash()
    eventually(lambda: answer_at(host, port) == b"the agent", what="the agent to be the door")
    daemon.start()
    assert answer_at(host, port, b"GET /v1/health HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.")
    assert daemon.call("run", agent=innocent, input={}, session_id="s")["result"] == "kept"
    assert f"an agent listens on {http_name([(host, port)])}," in daemon.log
    eventually(lambda: daemon.call("agent.stats", agent="squats")["workers"]["healthy"] == 1, timeout_s=20)


def answer_at(host: str, port: int, request: bytes = b"") -> bytes:
    try:
        with socket.create_connection((host, port), timeout=5) as client:
            client.sendall(request)
            return client.recv(64)
    except OSError:
        return b""


@pytest.mark.parametrize("over", [0, 1])
def test_a_path_too_long_for_sockets_is_refused_and_the_longest_works(
        new_daemon: NewDaemon, tmp_path: Path, over: int) -> None:
    # fault 72
    daemon = Daemon(http=False)
    try:
        stem = str(daemon.runtime_dir)
        daemon.runtime_dir = Path(stem + "x" * (SUN_PATH_BYTES - TEMPLATE_BYTES + over - len(stem)))
        daemon.control_socket = daemon.runtime_dir / "ctl.sock"
        if over:
            code, words = refused(daemon)
            assert code == 2 and "too long for sockets" in words and str(SUN_PATH_BYTES - TEMPLATE_BYTES) in words
            assert "Traceback" not in words
        else:
            daemon.start()
            assert daemon.call("run", agent=deploy(daemon, tmp_path / "far"), input={})["result"] is None
    finally:
        daemon.close()
