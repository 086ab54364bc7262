"""Starts and ends the processes that take part: the daemon under measurement and the baselines beside it."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemon import Daemon
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parent.parent
AGENTS = Path(__file__).resolve().parent / "agents"
#: For a baseline that is Python: an import and a bind.
START_TIMEOUT_S = 15.0


@contextmanager
def daemon(*agents: Path) -> Iterator[Daemon]:
    """A daemon with its defaults (sandbox, run log) and these agents deployed."""
    orpheus = Daemon("--log-level", "warning")
    try:
        orpheus.start()
        for agent in agents:
            orpheus.deploy(agent)
        yield orpheus
    finally:
        orpheus.close()


@contextmanager
def module(name: str, *args: str) -> Iterator[None]:
    """`python -m NAME ARGS`, from the moment it prints a line until the block ends."""
    with process([sys.executable, "-m", name, *args], ready_by_line=True):
        yield


@contextmanager
def process(argv: list[str], port: int | None = None, ready_by_line: bool = False) -> Iterator[None]:
    """The command, from the moment it listens on `port` or prints a line until the block ends."""
    started = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE if ready_by_line else subprocess.DEVNULL,
                               stderr=None if ready_by_line else subprocess.DEVNULL)
    try:
        if ready_by_line:
            assert started.stdout is not None
            if not started.stdout.readline():
                raise AssertionError(f"{argv} left at once")
        if port is not None:
            eventually(lambda: _listens(port), START_TIMEOUT_S, f"{argv[0]} on port {port}")
        yield
    finally:
        started.terminate()
        try:
            started.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if started.stdout is not None:
            started.stdout.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
