"""Misuse of the control socket, and more clients and sessions than are good for a daemon. Faults 64, 65 and 71."""

import json
import random
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.doors.control import CLIENTS_LIMIT
from orpheusd.errors import OrpheusError
from orpheusd.wire.control import FRAME_LIMIT_BYTES
from tests.daemon import Control, Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness

NewDaemon = Callable[..., Daemon]

QUICKLY = "def handler(input_data):\n    effect()\n    return secret(input_data)\n"
LARGE = "def handler(input_data):\n    effect()\n    return 'x' * 8_000_000\n"
SLOW = "import time\ndef handler(input_data):\n    effect()\n    time.sleep(1)\n    return secret(input_data)\n"
#: What a call may take while somebody misuses the door, as the median: of a busy machine's worst it would tell little.
#: Alone a call takes a fraction of a millisecond.
LATENCY_S = 0.05
MIB = 1024 * 1024


def deploy(daemon: Daemon, folder: Path, code: str = QUICKLY) -> str:
    daemon.deploy(witness(folder, code))
    eventually(lambda: daemon.call("agent.stats", agent=folder.name)["workers"]["healthy"] == 1, timeout_s=20)
    return folder.name


@pytest.fixture
def calm(new_daemon: NewDaemon, tmp_path: Path) -> Daemon:
    daemon = new_daemon(http=False)
    deploy(daemon, tmp_path / "calm")
    return daemon


@contextmanager
def canary(daemon: Daemon) -> Iterator[list[float]]:
    """How long calls of somebody well-behaved take meanwhile."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with daemon.connect(20) as control:
            while not over.is_set():
                started = time.perf_counter()
                control.call("health")
                took.append(time.perf_counter() - started)
                over.wait(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join(30)


def frames(chance: random.Random, count: int) -> Iterator[bytes]:
    """Bytes, JSON of every kind, requests of every kind of wrong; one line each."""
    values: list[Any] = [None, True, 0, -1, 1e308, 2**63, "", "\x00", "a" * 200, [], {}, [[]] * 50, {"a": {}}]
    for _ in range(count):
        kind = chance.randrange(4)
        if kind == 0:
            yield chance.randbytes(chance.randrange(1, 60)).replace(b"\n", b"\x01")
        elif kind == 1:
            yield json.dumps(chance.choice(values)).encode()
        else:
            request = {"jsonrpc": chance.choice(["2.0", "1.0", 2]), "id": chance.choice([1, "x", None, 1.5, []]),
                       "method": chance.choice(["run", "health", "no.such", "", 7, "run.show", "deploy"]),
                       "params": chance.choice(values)}
            yield json.dumps(dict(chance.sample(sorted(request.items()), chance.randrange(5)))).encode()


@pytest.mark.parametrize("count", [
    20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.deadline(900.0)])])
def test_random_frames_hold_up_nobody(calm: Daemon, count: int) -> None:
    # fault 71
    clients = 4

    def throw(seed: int) -> bytes:
        """The last words of the daemon to one client, who says when it has thrown everything."""
        chance = random.Random(seed)
        with Control(calm.control_socket, 60) as control, ThreadPoolExecutor(1) as pool:
            heard = pool.submit(_read_all, control.socket)
            for _ in range(count // clients // 1000):
                control.socket.sendall(b"\n".join(frames(chance, 1000)) + b"\n")
            control.send("health")
            control.socket.shutdown(socket.SHUT_WR)
            return heard.result(60)

    with Aftermath(calm), canary(calm) as took, ThreadPoolExecutor(clients) as pool:
        for last in pool.map(throw, range(clients)):
            assert b'"status":"ok"' in last, "the last frame was answered, and then it hung up"
    assert statistics.median(took) < LATENCY_S, sorted(took)[-10:]


def _read_all(client: socket.socket) -> bytes:
    """The last kilobyte before the end."""
    last = b""
    while piece := client.recv(1 << 20):
        last = (last + piece)[-1024:]
    return last


def test_a_flood_of_requests_in_one_write_holds_up_nobody(calm: Daemon) -> None:
    # fault 71: thousands are in one read of the daemon's, and no answer that has to be read slows their sender
    request = b'{"jsonrpc":"2.0","method":"metrics"}\n'
    with calm.connect(60) as control, canary(calm) as took:
        started = time.monotonic()
        control.socket.sendall(request * 15_000)
        assert control.call("health")["status"] == "ok"
        flood_s = time.monotonic() - started
    assert max(took) < flood_s / 4, f"one of its reads is half of the flood of {flood_s:.1f} s"


def test_every_frame_of_one_write_is_answered_in_order(calm: Daemon) -> None:
    # fault 71: more frames than a turn serves
    count = 5000
    with calm.connect(30) as control:
        requests = [{"jsonrpc": "2.0", "id": number, "method": "health"} for number in range(count)]
        writer = threading.Thread(target=control.socket.sendall, args=(
            b"".join(json.dumps(one).encode() + b"\n" for one in requests),))
        writer.start()
        assert [control.receive()["id"] for _ in range(count)] == list(range(count))
        writer.join(30)
        control.socket.sendall(b'{"jsonrpc":"2.0","id":"last","method":"health"}\n' * 200)
        control.socket.shutdown(socket.SHUT_WR)
        assert [control.receive()["id"] for _ in range(200)] == ["last"] * 200
        with pytest.raises(EOFError):
            control.receive()


@pytest.mark.parametrize("said", [b"", b'{"jsonrpc":"2.0","id":1,"meth'])
def test_a_thousand_idle_clients_shut_nobody_out(calm: Daemon, said: bytes) -> None:
    # fault 71
    with Aftermath(calm) as after, ExitStack() as stack:
        clients = []
        for _ in range(1000):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(calm.control_socket))  # waits while the backlog is full
            client.settimeout(20)
            client.sendall(said)
            clients.append(client)
        # until those before it in the backlog are accepted, the kernel says EAGAIN
        eventually(partial(_healthy, calm), timeout_s=6)
        assert after.run("calm").code == ""
        assert len(list(Path(f"/proc/{calm.pid}/fd").iterdir())) < CLIENTS_LIMIT + 100
        assert clients[0].recv(10) == b"", "the one that was idle the longest was let go"


def test_a_client_that_works_is_not_let_go_for_idle_ones(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 71
    daemon = new_daemon(http=False)
    agent = deploy(daemon, tmp_path / "works", SLOW)
    with Aftermath(daemon) as after, ExitStack() as stack:
        working = after.run_in_background(agent)
        assert working.run_id
        for _ in range(CLIENTS_LIMIT + 50):
            stack.enter_context(daemon.connect(20))
        assert working.outcome().code == ""


def test_a_frame_without_an_end_is_refused_at_the_limit(calm: Daemon) -> None:
    # fault 71
    with Aftermath(calm), canary(calm) as took, calm.connect(30) as control:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(FRAME_LIMIT_BYTES // MIB + 2):
                control.socket.sendall(b"x" * MIB)
        error = control.receive()["error"]
        assert error["data"]["code"] == "too-large"
        with pytest.raises((EOFError, ConnectionResetError)):
            control.receive()
    assert statistics.median(took) < LATENCY_S


def test_a_client_that_never_reads_is_cut_off(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 71; and I6, for answers that wait
    daemon = new_daemon(http=False)
    agent = deploy(daemon, tmp_path / "large", LARGE)
    with daemon.connect(60) as control:
        for _ in range(60):
            control.send("run", agent=agent, input={})
        eventually(lambda: "does not read its answers is cut off" in daemon.log, timeout_s=60)
        with suppress(ConnectionError):
            _read_all(control.socket)  # what the kernel held, and then the end
    eventually(partial(_runs, daemon, agent), timeout_s=30, what="the run log to have written all the results")


def test_a_daemon_out_of_files_goes_on_and_recovers_by_itself(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 64
    daemon = new_daemon(http=False)
    agent = deploy(daemon, tmp_path / "files", SLOW)
    with Aftermath(daemon, log_growth_bytes=10_000) as after:
        going = after.run_in_background(agent)
        assert going.run_id
        files = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) + 10
        before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (files, before[1]))
        with ExitStack() as stack:
            for _ in range(150):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.connect(str(daemon.control_socket))
            assert going.outcome().code == "", "what goes on is not touched"
        eventually(partial(_healthy, daemon), timeout_s=2)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def _healthy(daemon: Daemon) -> bool:
    try:
        return bool(daemon.call("health")["status"] == "ok")
    except (OSError, EOFError):
        return False


def _runs(daemon: Daemon, agent: str) -> bool:
    try:
        return bool(daemon.call("run", agent=agent, input={})["result"])
    except OrpheusError:
        return False


def test_ten_thousand_sessions_cost_little_and_slow_nobody(calm: Daemon) -> None:
    # fault 65
    count, window = 10_000, 30
    with calm.connect(60) as control:
        before = psutil.Process(calm.pid).memory_info().rss
        for number in range(count):
            control.send("run", agent="calm", input={}, session_id=f"s{number}")
            if number >= window:
                assert "result" in control.receive()
        for _ in range(window):
            assert "result" in control.receive()
        took = []
        for number in range(0, count, 50):
            started = time.perf_counter()
            answer = control.call("run", agent="calm", input={}, session_id=f"s{number}")
            took.append(time.perf_counter() - started)
            assert answer["session"]["context"] == "warm"
        assert psutil.Process(calm.pid).memory_info().rss - before < 100 * MIB
        assert control.call("agent.stats", agent="calm")["sessions"]["count"] == count
    assert statistics.median(took) < 0.005
