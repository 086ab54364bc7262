"""Templates that are started in units of their own: a real bubblewrap and none, and in systemd's place the program of
systemd that starts what a unit with `Accept=yes` would. The whole of it, on a real systemd, is in tests/system."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.process import sandbox, spawn
from orpheusd.process.launch import TemplateProcess, launch_template
from orpheusd.process.sandbox import Command, TemplateSpec
from tests.daemon import ROOT
from tests.eventually import eventually

SPAWNED = (sys.executable, "-m", "orpheusd.process.spawned")
TIMEOUT_S = 20.0
LOOKS = """
import json, os, resource, sys, time
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "input": sys.stdin.read(), "fds": sorted(map(int, os.listdir("/proc/self/fd"))), "cwd": os.getcwd(),
    "leads": os.getpgid(0) == os.getpid(), "environ": sorted(os.environ), "umask": status["Umask"],
    "ignored": status["SigIgn"], "blocked": status["SigBlk"]}), flush=True)
time.sleep(60)
"""


@pytest.fixture
def units(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that has `program` started for each connection to a socket, and returns the socket."""
    started: list[subprocess.Popen[bytes]] = []
    path = tmp_path / "agents.sock"

    def listen(*program: str) -> Path:
        started.append(subprocess.Popen(
            ["systemd-socket-activate", "--seqpacket", "--accept", "--inetd", "--listen", path, *program], cwd=ROOT,
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        eventually(lambda: _is_listened_to(path), TIMEOUT_S, "the socket")
        return path

    yield listen
    for process in started:
        process.terminate()
        process.wait(TIMEOUT_S)


def _is_listened_to(path: Path) -> bool:
    """As the kernel lists it (proc(5)), so that no connection is made: the flag is that of a listening socket."""
    listed = Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == "00010000" for line in listed)


@pytest.fixture(params=["bwrap", "none"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Command]:
    for name in ("code", "ws", "link"):
        (tmp_path / name).mkdir()
    spec = TemplateSpec(f"t-{os.getpid()}-{tmp_path.name}", "my-agent", tmp_path / "code", tmp_path / "ws", None,
                        tmp_path / "link", network=False)
    lib = sandbox.make_lib_dir(tmp_path / "lib")
    return lambda code: sandbox.template_argv(
        sandbox.detect(request.param), sandbox.find_interpreter(), spec, lib, code)


def test_a_template_in_a_unit_has_what_it_is_given_and_nothing_else(
        units: Callable[..., Path], command: Callable[[str], Command]) -> None:
    path = units(*SPAWNED)

    async def scenario() -> None:
        lines: asyncio.Queue[str] = asyncio.Queue()
        for at in (None, path):
            template = await launch_template(command(LOOKS), b"the line", lines.put_nowait, at)
            seen = json.loads(await lines.get())
            assert (seen["input"], seen["fds"]) == ("the line\n", [0, 1, 2, 3]), "3 is the look itself"
            looked.append(seen)
            template.kill()
            assert await template.wait() == (None if at else -signal.SIGKILL)
            eventually(lambda template=template: not _lives(template), TIMEOUT_S, "whoever started it to bury it")

    looked: list[object] = []
    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))
    assert looked[0] == looked[1]


def test_nobody_at_the_socket_is_told(tmp_path: Path, command: Callable[[str], Command]) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match=r"no unit at .*/nobody: No such file or directory; `systemctl"):
            await launch_template(command(LOOKS), b"", print, tmp_path / "nobody")

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def test_a_unit_that_ends_at_once_is_told(units: Callable[..., Path], command: Callable[[str], Command]) -> None:
    path = units("true")

    async def scenario() -> None:
        with pytest.raises(OSError, match=r"no unit at .*: .+; `systemctl"):
            await launch_template(command(LOOKS), b"", print, path)

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def test_a_unit_that_never_says_a_word_is_given_up(
        units: Callable[..., Path], command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch) -> None:
    path = units("sleep", "60")
    monkeypatch.setattr(spawn, "UNIT_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        with pytest.raises(OSError, match="it took too long"):
            await launch_template(command(LOOKS), b"", print, path)

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def test_a_daemon_that_dies_while_it_asks_leaves_nothing(units: Callable[..., Path]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(str(units(*SPAWNED)))
        request = {"argv": ["/bin/sleep", "60"], "env": {}, "cwd": "/", "fds": [0, 1, 2]}
        socket.send_fds(asked, [json.dumps(request).encode()], [0, 1, 2])
        asked.settimeout(TIMEOUT_S)
        pid = int(asked.recv(16))
        os.kill(pid, 0)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), TIMEOUT_S, "the end of who was asked")


def _lives(template: TemplateProcess) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in (template.pid, template.inner_pid) if pid is not None)
