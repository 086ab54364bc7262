"""Signals to the daemon at any time, and faults inside it: never half a daemon. Faults 41, 42, 44 and 45."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import ROOT, Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.telling import QUICK, STUBBORN, exit_of, running, tell

NewDaemon = Callable[..., Daemon]


def serves_again(daemon: Daemon, agent: str) -> None:
    daemon.start()
    eventually(lambda: daemon.call("agent.stats", agent=agent)["workers"]["healthy"] == 1, timeout_s=20)
    with Aftermath(daemon) as after:
        assert after.run(agent, {"seconds": 0}).code == ""


STAGES = ("daemon-locked", "daemon-log-open", "daemon-doors-open")


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at_a_stage_of_the_start(new_daemon: NewDaemon, tmp_path: Path, stage: str) -> None:
    # fault 44
    daemon = new_daemon(env=QUICK)
    daemon.deploy(witness(tmp_path / "early", STUBBORN))
    daemon.stop()
    daemon.env = {**QUICK, "ORPHEUS_FAILPOINTS": f"{stage}=stall"}
    with starting(daemon) as process:
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, timeout_s=20)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
    daemon.env = QUICK
    nothing_of_it_is_left(daemon)


@pytest.mark.parametrize("points", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.deadline(600.0)])])
def test_sigterm_at_any_moment_of_the_start(new_daemon: NewDaemon, tmp_path: Path, points: int) -> None:
    # fault 44
    daemon = new_daemon(env=QUICK)
    daemon.deploy(witness(tmp_path / "early", STUBBORN))
    daemon.stop()
    began = time.monotonic()
    daemon.start()
    start_s = time.monotonic() - began
    daemon.stop()
    for point in range(points):
        with starting(daemon) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.2 * start_s * point / points)  # the moment of the signal; it does not end by itself
            process.send_signal(signal.SIGTERM)
            # before it has a handler it dies of the signal, and has nothing yet that could be left
            assert process.wait(20) in (0, -signal.SIGTERM)
        assert not daemon.control_socket.exists(), f"a socket is left by point {point}"
    nothing_of_it_is_left(daemon)


@contextmanager
def starting(daemon: Daemon) -> Iterator["subprocess.Popen[bytes]"]:
    """A daemon on its way up, which nobody waits for."""
    with daemon.spawn() as process:
        try:
            yield process
        finally:
            process.kill()


def nothing_of_it_is_left(daemon: Daemon) -> None:
    """No process, no socket, no lock: the next one starts at once, and serves."""
    lines = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(daemon.directory) in line] == []
    assert not daemon.control_socket.exists()
    serves_again(daemon, "early")


HARMLESS = (
    "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT", "SIGXCPU", "SIGXFSZ",
    "SIGPIPE", "SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH",
)
STOPPING = ("SIGTSTP", "SIGTTIN", "SIGTTOU")
FATAL = ("SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
ASKING = ("SIGTERM", "SIGINT")
#: Reloads the daemon, which is another story.
ELSEWHERE = ("SIGHUP",)


def test_every_signal_is_thought_of() -> None:
    # fault 45
    named = {signal.Signals[name] for name in (*HARMLESS, *STOPPING, *FATAL, *ASKING, *ELSEWHERE)}
    assert {*range(1, 32)} - {signal.SIGKILL, signal.SIGSTOP} == named


def test_signals_by_a_stranger_change_nothing(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 45
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "calm", STUBBORN))
    family = set(daemon.family())
    process = daemon.process
    assert process is not None
    with Aftermath(daemon, log_growth_bytes=10_000) as after:
        going = after.run_in_background("calm", {"seconds": 1}, session_id="s")
        eventually(lambda: running(daemon, "calm") == 1)
        for name in HARMLESS:
            for _ in range(20):
                process.send_signal(signal.Signals[name])
            assert daemon.call("health")["status"] == "ok", name
        for name in STOPPING:
            # without a terminal the kernel drops it, with one it stops the daemon as it stops anybody
            process.send_signal(signal.Signals[name])
            process.send_signal(signal.SIGCONT)
            assert daemon.call("health")["status"] == "ok", name
        assert going.outcome().code == ""
        assert after.run("calm", {"seconds": 0}, session_id="s").context == "warm"
        assert httpx.get(f"{daemon.http}/v1/health").json()["status"] == "ok"
    assert family <= set(daemon.family()), "nobody inside heard of it"


@pytest.mark.parametrize("name", [
    *FATAL[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in FATAL[1:])])
def test_a_signal_that_says_that_it_is_broken_ends_it_and_the_next_one_starts(
        new_daemon: NewDaemon, tmp_path: Path, name: str) -> None:
    # fault 45
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "broken", STUBBORN))
    tell(daemon, signal.Signals[name])
    code, took_s = exit_of(daemon, 10)
    assert code == -signal.Signals[name] and took_s < 1
    serves_again(daemon, "broken")


class Fault(NamedTuple):
    """Where a method of the daemon's raises, and what makes it be called."""

    module: str
    owner: str
    method: str
    error: str
    provoke: Callable[[Daemon], object]


def nothing(_daemon: Daemon) -> None:
    """It is called anyhow, every other second."""


def ask_for_a_run(daemon: Daemon) -> None:
    with suppress(OrpheusError, OSError, EOFError):
        daemon.call("run", agent="other", input={"seconds": 0})


def kill_family(daemon: Daemon) -> None:
    """The front door, the template and its worker die."""
    for process in daemon.family():
        with suppress(psutil.NoSuchProcess):
            process.kill()


FAULTS = {
    "a timer": Fault("orpheusd.process.monitor", "Monitor", "sample_next", "ValueError", nothing),
    "a timer, OSError": Fault("orpheusd.process.monitor", "Monitor", "sample_next", "OSError", nothing),
    "a front door's task": Fault("orpheusd.doors.front", "FrontDoors", "_serve", "ValueError", kill_family),
    "a template's task": Fault("orpheusd.process.lives", "Lives", "_launch", "ValueError", kill_family),
    "a connection": Fault("orpheusd.doors.connection", "Connection", "_serve", "ValueError", ask_for_a_run),
    "a channel": Fault("orpheusd.process.processes", "Processes", "heard", "ValueError", ask_for_a_run),
    "the engine": Fault("orpheusd.core.supervisor", "Supervisor", "handle", "ValueError", ask_for_a_run),
    "the engine, OSError": Fault("orpheusd.core.supervisor", "Supervisor", "handle", "OSError", ask_for_a_run),
}
#: Once the trigger exists, the method raises whenever it is called; in the daemon alone.
INJECTION = """
import importlib, os, sys
if "orpheusd" in sys.orig_argv:
    owner = getattr(importlib.import_module({module!r}), {owner!r})
    method = getattr(owner, {method!r})
    def injected(*args, **kwargs):
        if os.path.exists({trigger!r}):
            raise {error}("injected")
        return method(*args, **kwargs)
    setattr(owner, {method!r}, injected)
"""


@pytest.mark.parametrize("place", FAULTS)
def test_a_fault_of_its_own_ends_the_daemon_whole(new_daemon: NewDaemon, tmp_path: Path, place: str) -> None:
    # fault 42
    fault, trigger = FAULTS[place], tmp_path / "trigger"
    code = INJECTION.format(trigger=str(trigger), **{name: getattr(fault, name) for name in fault._fields[:4]})
    (tmp_path / "sitecustomize.py").write_text(code)
    daemon = new_daemon(env={**QUICK, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    daemon.deploy(witness(tmp_path / "other", STUBBORN))
    trigger.touch()
    fault.provoke(daemon)
    assert exit_of(daemon, 20)[0] == 70, daemon.log[-3000:]
    assert "injected" in daemon.log
    with pytest.raises(OSError):
        daemon.connect()
    daemon.env = QUICK
    serves_again(daemon, "other")


def lag_s(daemon: Daemon) -> float:
    text = daemon.call("metrics")["text"]
    found = re.search(r"(?m)^orpheus_loop_lag_seconds ([0-9.e+-]+)$", text)
    assert found is not None, text
    return float(found[1])


def test_a_loop_that_is_held_up_shows(new_daemon: NewDaemon) -> None:
    # fault 41: what holds it up does not matter; here it is a stop of the whole process
    daemon = new_daemon(http=False)
    assert lag_s(daemon) < 0.5
    process = daemon.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGCONT)
    eventually(lambda: 1.2 < lag_s(daemon) < 10)
    assert "the event loop was held up for" in daemon.log


