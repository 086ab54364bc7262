"""Processes held by descriptor, with real processes, on both event loops."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from orpheusd.process.pidfds import PidFd, peer_of

Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize(
    "loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_signal_reaches_the_process(sleeper: "subprocess.Popen[bytes]") -> None:
    held = PidFd(sleeper.pid)
    assert not held.exited()
    assert held.send_signal(signal.SIGTERM)
    assert sleeper.wait() == -signal.SIGTERM
    assert held.exited()
    held.close()


def test_the_reaped_and_the_closed_take_no_signal(sleeper: "subprocess.Popen[bytes]") -> None:
    held = PidFd(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not held.send_signal(signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        PidFd(sleeper.pid)
    held.close()
    held.close()
    assert not held.send_signal(signal.SIGTERM)


def test_who_leads_a_group_is_killed_with_it_and_nobody_else(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # whoever lives holds the fifo open: its end is the end of them all
    argv = ["sh", "-c", f"exec 3> {fifo}; sleep 60 & sleep 60"]
    leader = subprocess.Popen(argv, start_new_session=True)
    with fifo.open("rb") as alive:
        held = PidFd(leader.pid)
        assert held.kill_group()
        assert leader.wait() == -signal.SIGKILL
        assert alive.read() == b""
    assert not held.kill_group()
    held.close()
    assert not held.kill_group()


def test_who_leads_no_group_is_killed_alone(sleeper: "subprocess.Popen[bytes]") -> None:
    held = PidFd(sleeper.pid)
    assert held.kill_group(), "and we, who are of its group, are there"
    assert sleeper.wait() == -signal.SIGKILL
    held.close()


def test_an_expendable_process_is_never_made_less_so(sleeper: "subprocess.Popen[bytes]") -> None:
    # fault 8
    held = PidFd(sleeper.pid)
    score = Path(f"/proc/{sleeper.pid}/oom_score_adj")
    held.make_expendable()
    assert score.read_text() == "500\n"
    score.write_text("900")
    held.make_expendable()
    assert score.read_text() == "900\n"
    sleeper.kill()
    sleeper.wait()
    held.make_expendable()
    held.close()


@LOOPS
def test_a_watch_fires_once(loop_factory: Loop, sleeper: "subprocess.Popen[bytes]") -> None:
    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        held = PidFd(sleeper.pid)
        fired: list[str] = []
        held.watch(loop, lambda: fired.append("a watch that was replaced"))
        held.watch(loop, lambda: fired.append("exit"))
        for _ in range(3):
            await asyncio.sleep(0)
        fired.append("killing")
        held.send_signal(signal.SIGKILL)
        assert await asyncio.wait_for(_turns_until(lambda: len(fired) > 1), 5)
        for _ in range(3):
            await asyncio.sleep(0)
        held.watch(loop, lambda: fired.append("exit of a dead one"))
        assert await asyncio.wait_for(_turns_until(lambda: len(fired) > 2), 5)
        held.watch(loop, lambda: fired.append("a watch that was closed"))
        held.close()
        for _ in range(3):
            await asyncio.sleep(0)
        return fired

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(scenario()) == ["killing", "exit", "exit of a dead one"]


@LOOPS
def test_waiting_has_a_deadline(loop_factory: Loop, sleeper: "subprocess.Popen[bytes]") -> None:
    async def scenario() -> None:
        held = PidFd(sleeper.pid)
        assert not await held.wait(0.02)
        held.send_signal(signal.SIGKILL)
        assert await held.wait(5)
        assert await held.wait(0)
        held.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


DIAL = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


@LOOPS
def test_the_peer_of_a_transport_is_who_dialled(loop_factory: Loop, tmp_path: Path) -> None:
    async def scenario() -> None:
        met: asyncio.Future[tuple[int, int, int, int]] = asyncio.get_running_loop().create_future()

        class Door(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                held = PidFd.of_peer(sock)
                met.set_result((*peer_of(sock), held.pid))
                held.send_signal(signal.SIGKILL)
                held.close()

            def connection_lost(self, exc: Exception | None) -> None:
                gone.set()

        gone = asyncio.Event()
        server = await asyncio.get_running_loop().create_unix_server(Door, str(tmp_path / "s"))
        dialler = subprocess.Popen([sys.executable, "-S", "-c", DIAL, str(tmp_path / "s")])
        assert await asyncio.wait_for(met, 5) == (dialler.pid, os.getuid(), os.getgid(), dialler.pid)
        await asyncio.wait_for(gone.wait(), 5)
        assert dialler.wait() == -signal.SIGKILL
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


def test_a_dead_peer_is_never_taken_for_another(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        dialler = subprocess.Popen([sys.executable, "-S", "-c", DIAL, str(tmp_path / "s")])
        accepted, _ = listener.accept()
        with accepted:
            dialler.kill()
            dialler.wait()
            try:
                held = PidFd.of_peer(accepted)
            except ProcessLookupError:
                return  # before Linux 6.16
            assert held.exited()
            assert not held.send_signal(signal.SIGTERM)
            held.close()


async def _turns_until(predicate: Callable[[], bool]) -> bool:
    while not predicate():
        await asyncio.sleep(0.001)
    return True
