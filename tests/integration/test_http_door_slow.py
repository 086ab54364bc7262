"""Answers that nobody reads: the memory they take is bounded in the door and the daemon, and others are answered."""

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.daemon import Daemon, command, write_agent
from tests.eventually import eventually
from tests.integration.door_peer import DoorProcess, post, run_result

NewDaemon = Callable[..., Daemon]
MIB = 1024 * 1024
BODY = b'{"input": {"query": "step 1"}}'


def held_clients(door: DoorProcess) -> int:
    """Connections that the door has not closed."""
    return sum(one.status == "ESTABLISHED" for one in psutil.Process(door.process.pid).net_connections("tcp"))


@pytest.mark.parametrize("pieces", [1, 2], ids=["plain", "in pieces"])
def test_who_takes_nothing_goes_for_those_that_read(tmp_path: Path, pieces: int) -> None:
    # fault 61
    request = post(BODY)
    with DoorProcess(tmp_path / "log", answers_bytes=20 * MIB) as door:
        door.peer.on("run", run_result(result="x" * (8 * MIB)))
        with door.clients(12, receive_bytes=4096) as stuck:
            for number, client in enumerate(stuck, 1):
                client.sendall(request[:-1] if pieces == 2 else request)
                if pieces == 2:
                    client.sendall(request[-1:])
                door.peer.awaited("run", number)
            eventually(lambda: held_clients(door) <= 4, what="room to be made for the last of them")
            assert held_clients(door) >= 1
            answer = httpx.post(f"{door.url}/v1/agents/echo/run", json={"input": {}}, timeout=20)
            assert len(answer.json()["result"]) == 8 * MIB
            assert door.rss_bytes() < 200 * MIB


def most_resident(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def test_a_hundred_that_ask_for_the_most_and_read_nothing(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 61; I6: results of 800 MB are asked for in one moment
    daemon = new_daemon()
    code = "def handler(input_data):\n    return 'x' * input_data['bytes']\n"
    daemon.deploy(write_agent(tmp_path / "lengthy", code, scaling={"min_workers": 2, "max_workers": 2}))
    ours = [daemon.pid, *(one.pid for one in daemon.family() if "orpheusd.doors.http" in command(one))]
    assert daemon.http is not None
    request = post(json.dumps({"input": {"bytes": 8_000_000}}).encode(), path=b"/v1/agents/lengthy/run")
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(daemon.http.rpartition(":")[2])))
            client.sendall(request)
        eventually(lambda: daemon.call("agent.stats", agent="lengthy")["runs"]["completed"] == 100, 60,
                   "every run to end")
        assert httpx.get(f"{daemon.http}/v1/health", timeout=20).is_success
    assert sum(map(most_resident, ours)) < 400 * MIB, [most_resident(pid) // MIB for pid in ours]
