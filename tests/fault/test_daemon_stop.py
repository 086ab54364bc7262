"""The daemon is told to stop, whatever runs and clients do: one shutdown, in bounded time. Faults 43, 44 and 46."""

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, command
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.holdings import stored
from tests.fault.telling import GRACE_S, QUICK, STOP_TIMEOUT_S, STUBBORN, exit_of, running, tell
from tests.integration.door_peer import first_answer, post, until_closed

NewDaemon = Callable[..., Daemon]

#: What docs/operations.md promises beyond the grace.
LEEWAY_S = 1.0
#: A daemon that waits for runs longer than any test may take.
PATIENT = {"ORPHEUS_STOP_TIMEOUT_S": "300", "ORPHEUS_GRACE_S": str(GRACE_S)}
STORM = 1000

#: Streams for ever; with `kilobytes` it first says that much, more than the kernel holds for a client.
STREAMS = """
import asyncio

async def handler(input_data):
    effect()
    for _ in range(input_data.get("kilobytes", 0) // 60):
        yield "x" * 60_000
    while True:
        yield "tick"
        await asyncio.sleep(0.1)
"""


def rows(daemon: Daemon) -> dict[str, str]:
    """State by run id, as it stands on the disk."""
    return {row.run_id: row.state for row in stored(daemon, 0)}


def messages(daemon: Daemon) -> set[str]:
    return {row.text.decode().split("\n")[1] for row in stored(daemon, 0) if row.state == "cancelled"}


GATED = """
import time

def handler(input_data):
    effect()
    while input_data.get("until") and not os.path.exists(workspace.path(input_data["until"])):
        time.sleep(0.005)
    return secret(input_data)
"""


def test_who_waits_for_a_reload_that_becomes_a_stop_is_answered(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 43
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "gated", GATED, scaling={"min_workers": 2}))
    assert daemon.http is not None and daemon.process is not None
    gate = Path(daemon.call("workspace.info", agent="gated")["path"]) / "go"
    with ExitStack() as stack:
        running_one, asking, known = [stack.enter_context(daemon.connect()) for _ in range(3)]
        assert known.call("health")["status"] == "ok"
        running_one.send("run", agent="gated", input={"until": "go"})
        eventually(lambda: running(daemon, "gated") == 1)
        asking.send("reload")
        eventually(lambda: "reloading: " in daemon.log, 10)
        known.send("run", agent="gated", input={})
        stranger = stack.enter_context(daemon.connect())
        stranger.send("health")
        host, port = daemon.http.removeprefix("http://").split(":")
        over_http = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        over_http.sendall(post(b'{"input":{}}', path=b"/v1/agents/gated/run"))
        family = daemon.family()
        daemon.process.terminate()
        told = [control.receive() for control in (asking, known, stranger)]
        status = first_answer(over_http).split(b" ", 2)[1:2]
        gate.touch()
        assert "result" in running_one.receive(), "the run had its time"
        assert daemon.died() == 0
    assert "reloaded" not in daemon.log and not [one for one in family if one.is_running()]
    codes = [frame["error"]["data"]["code"] if "error" in frame else "" for frame in told]
    assert codes[0] == "draining" and set(codes[1:]) <= {"", "draining"}, told
    assert status in ([b"200"], [b"503"])


@pytest.mark.parametrize("over", [True, False], ids=["over", "going on"])
def test_a_stop_hears_those_of_before_first(new_daemon: NewDaemon, tmp_path: Path, over: bool) -> None:
    # fault 44: told to stop before a worker of the daemon that was killed could dial
    daemon = new_daemon(http=False)
    daemon.deploy(witness(tmp_path / "gated", GATED))
    gate = Path(daemon.call("workspace.info", agent="gated")["path"]) / "go"
    with daemon.connect() as control:
        control.send("run", agent="gated", input={"until": "go"})
        eventually(lambda: list(rows(daemon).values()) == ["started"], what="its start to be on the disk")
        daemon.crash()
    if over:
        gate.touch()
    daemon.env = {"ORPHEUS_FAILPOINTS": "daemon-doors-open=stall"}
    daemon.process = daemon.spawn()
    eventually(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_STOPPED, 20, "it to stand at the point")
    daemon.process.terminate()
    daemon.process.send_signal(signal.SIGCONT)
    eventually(lambda: "stopping: runs have" in daemon.log, what="it to be told")
    gate.touch()
    assert daemon.died() == 0
    assert list(rows(daemon).values()) == ["completed"]
    assert daemon.orphans() == []


@contextmanager
def streaming(daemon: Daemon, agent: str, readers: int, stuck: int) -> Iterator[list[socket.socket]]:
    """The sockets of `readers` open streams; `stuck` more are there that nobody ever reads."""
    assert daemon.http is not None
    address = ("127.0.0.1", int(daemon.http.rpartition(":")[2]))
    path = b"/v1/agents/%b/run" % agent.encode()
    with ExitStack() as stack:
        def ask(body: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 if b"kilo" in body else 65536)
            client.settimeout(30)
            client.connect(address)
            client.sendall(post(body, b"Accept: text/event-stream", path=path))
            return client

        for _ in range(stuck):
            ask(b'{"input":{"kilobytes":7000}}')
        clients = [ask(b'{"input":{}}') for _ in range(readers)]
        for client in clients:
            while b"tick" not in client.recv(1000):
                pass
        eventually(lambda: running(daemon, agent) == readers + stuck, timeout_s=20)
        yield clients


def deploy_streams(daemon: Daemon, folder: Path) -> str:
    daemon.deploy(witness(folder, STREAMS, concurrency=200, scaling={"max_workers": 1}))
    return folder.name


@pytest.mark.parametrize("signals", [1, STORM])
def test_sigterm_with_open_streams_and_readers_that_never_read(
        new_daemon: NewDaemon, tmp_path: Path, signals: int) -> None:
    # faults 43, 46
    daemon = new_daemon(env=QUICK)
    agent = deploy_streams(daemon, tmp_path / "streams")
    family = daemon.family()
    with Aftermath(daemon), streaming(daemon, agent, readers=100, stuck=10) as clients:
        for _ in range(signals):
            tell(daemon, signal.SIGTERM)
        code, took_s = exit_of(daemon, 30)
        assert code == 0
        assert took_s < STOP_TIMEOUT_S + GRACE_S + LEEWAY_S, daemon.log[-2000:]
        ends = [until_closed(client).rpartition(b"event: ")[2] for client in clients]
        assert all(b'"code":"cancelled"' in end and b"the daemon was stopping" in end for end in ends), ends[:3]
        assert set(rows(daemon).values()) == {"cancelled"} and len(rows(daemon)) == 110
        assert all("the daemon was stopping" in text for text in messages(daemon))
        assert daemon.log.count("stopping: runs have") == 1 and daemon.log.count(": stopped") == 1
        assert "signal wakeup fd" not in daemon.log and "a front door did not leave" not in daemon.log
        assert psutil.wait_procs(family, timeout=2)[1] == []
        assert not daemon.control_socket.exists()


def test_runs_get_their_time_and_then_are_cut(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 46: one run ends in time, one does as it is told, one has to be killed
    daemon = new_daemon(env=QUICK)
    daemon.deploy(witness(tmp_path / "stubborn", STUBBORN, scaling={"min_workers": 2}))
    daemon.deploy(witness(tmp_path / "obeys", STUBBORN.replace("BaseException", "TimeoutError")))
    eventually(lambda: daemon.call("agent.stats", agent="stubborn")["workers"]["healthy"] == 2, timeout_s=20)
    with Aftermath(daemon) as after:
        short = after.run_in_background("stubborn", {"seconds": STOP_TIMEOUT_S / 2})
        wedged = after.run_in_background("stubborn", {"seconds": 60})
        obedient = after.run_in_background("obeys", {"seconds": 60})
        started = [one.run_id for one in (short, wedged, obedient)]
        eventually(lambda: running(daemon, "stubborn") + running(daemon, "obeys") == 3)
        tell(daemon, signal.SIGTERM)
        code, took_s = exit_of(daemon, 30)
        assert code == 0
        assert STOP_TIMEOUT_S <= took_s < STOP_TIMEOUT_S + GRACE_S + LEEWAY_S, daemon.log[-2000:]
        assert short.outcome().code == ""
        for one in (wedged, obedient):
            assert one.outcome().code == "cancelled"
            assert "the daemon was stopping" in one.outcome().message
        assert [rows(daemon)[id] for id in started] == ["completed", "cancelled", "cancelled"]


def test_a_second_signal_does_not_wait_for_runs(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 44
    daemon = new_daemon(env=PATIENT, http=False)
    daemon.deploy(witness(tmp_path / "patient", STUBBORN.replace("BaseException", "TimeoutError")))
    with Aftermath(daemon) as after:
        going = after.run_in_background("patient", {"seconds": 200})
        eventually(lambda: running(daemon, "patient") == 1)
        tell(daemon, signal.SIGTERM)
        eventually(lambda: "stopping: runs have" in daemon.log)
        assert not going.answered, "the first signal waits for it"
        tell(daemon, signal.SIGINT)
        code, took_s = exit_of(daemon, 30)
        assert (code, going.outcome().code) == (0, "cancelled")
        assert took_s < GRACE_S + LEEWAY_S


def test_a_client_that_reads_slowly_gets_its_answer_before_the_daemon_goes(
        new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 46, at the control door: the answer is longer than what the kernel holds
    daemon = new_daemon(env={"ORPHEUS_GRACE_S": "10"}, http=False)
    daemon.deploy(witness(tmp_path / "large", "def handler(i):\n    effect()\n    return 'x' * 8_000_000\n"))
    with Aftermath(daemon), daemon.connect() as control:
        control.send("run", agent="large", input={})
        assert select.select([control.socket], [], [], 20)[0]
        tell(daemon, signal.SIGTERM)
        assert daemon.process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(1)
        assert len(control.receive()["result"]["result"]) == 8_000_000
        assert exit_of(daemon, 30)[0] == 0


def test_a_thread_that_hangs_holds_up_no_stop(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 46: a read that never ends, as of a disk that is gone
    daemon = new_daemon(env=QUICK, http=False)
    daemon.deploy(witness(tmp_path / "quiet", STUBBORN))
    log = daemon.state_dir / "logs" / "quiet" / "log.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    os.mkfifo(log)
    with daemon.connect() as control:
        control.send("logs", agent="quiet")
        control.call("health")
        tell(daemon, signal.SIGTERM)
        code, took_s = exit_of(daemon, 30)
    assert code == 0 and took_s < STOP_TIMEOUT_S + GRACE_S + LEEWAY_S


def test_a_deploy_that_goes_on_is_undone(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 46: an operation that takes longer than the grace
    daemon = new_daemon(env=QUICK, http=False)
    folder = witness(tmp_path / "hangs", "import time\ntime.sleep(600)\n")
    with Aftermath(daemon), ExitStack() as stack:
        refused: list[str] = []

        def deploy() -> None:
            try:
                daemon.deploy(folder)
            except (OrpheusError, OSError, EOFError) as error:
                refused.append(str(error))

        stack.enter_context(_thread(deploy))
        eventually(lambda: "template" in " ".join(" ".join(command(one)) for one in _alive(daemon)))
        tell(daemon, signal.SIGTERM)
        code, took_s = exit_of(daemon, 30)
        assert code == 0 and took_s < STOP_TIMEOUT_S + GRACE_S + LEEWAY_S
    assert len(refused) == 1
    daemon.start()
    assert daemon.call("agent.list")["agents"] == []


def _alive(daemon: Daemon) -> list[psutil.Process]:
    return [one for one in daemon.family() if one.is_running()]


@contextmanager
def _thread(work: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
