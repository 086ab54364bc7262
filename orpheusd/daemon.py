"""The daemon: puts the parts together in order, waits for a reason to stop, and takes them apart in order."""

import asyncio
import fcntl
import logging
import os
import resource
import secrets
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from orpheusd.config import Config
from orpheusd.core import effects as ef
from orpheusd.core.pool import Policy
from orpheusd.deploy.versions import VersionStore
from orpheusd.deployments import Deployments
from orpheusd.doors.control import ControlDoor
from orpheusd.doors.front import FrontDoors, bind, tag_of
from orpheusd.doors.place import check_place
from orpheusd.engine import Engine
from orpheusd.errors import EXIT_FAULT, AlreadyRunning, OrpheusError
from orpheusd.failpoints import reached
from orpheusd.lag import LoopLag
from orpheusd.logs import AgentLogs
from orpheusd.process.child import kill_leftovers
from orpheusd.process.reaper import reap
from orpheusd.process.sandbox import detect, find_interpreter, make_lib_dir
from orpheusd.recorder import Recorder
from orpheusd.remembered import Remembered
from orpheusd.runlog.settings import Settings
from orpheusd.runs import Runs
from orpheusd.service import Service
from orpheusd.systemd import Listening, Notifier, Watchdog, handed_over

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)
#: Signals that would end a process that does not expect them. Nobody has a reason to send one, and nobody's mistake
#: shall stop the daemon. Those that say that the process is broken (SIGSEGV, SIGABRT, ...) do end it.
IGNORED = (
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO,
    signal.SIGPWR, signal.SIGSTKFLT, signal.SIGXCPU,
)  # fmt: skip

#: After the last grace: what was killed is mourned (its last words take half a second), and its runs are answered.
STRAGGLERS_S = 0.6
#: The least that doors get to pass on a last answer, and the most that lines get to be written down.
LAST_S = 0.2

#: Every worker is looked at about this often; one at a time, so that no look takes long.
MONITOR_PERIOD_S = 2.0
MONITOR_LEAST_S = 0.05


async def serve(config: Config) -> int:
    """Run until a signal says stop. Returns the exit code. Raises OrpheusError when it cannot start."""
    _allow_descriptors()
    listening = handed_over(config.systemd.listen_fds)
    if listening.http is not None:
        config = replace(config, http=listening.http_name)
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[BaseException] = loop.create_future()
    loop.set_exception_handler(lambda _loop, context: _fail(failed, context))
    stop = StopSignals()
    with _lock(config.state_dir), _lock(config.runtime_dir):
        reached("daemon-locked")
        # a door that has not noticed yet that its daemon was killed still holds the port
        await kill_leftovers(tag_of(config.runtime_dir))
        daemon = Daemon(config, listening)
        try:
            await daemon.open()
            failed.add_done_callback(lambda _: stop.asked.set())
            await stop.asked.wait()
            if failed.done():
                # half a daemon is worse than none: it goes, and whoever supervises us starts a whole one, for which
                # the workers wait with what is in them
                log.critical("leaving because of a fault", exc_info=failed.result())
        finally:
            await (daemon.abandon() if failed.done() else daemon.close(stop.asked_again))
        return EXIT_FAULT if failed.done() else 0


async def clean_up(config: Config) -> int:
    """End what a daemon has left behind that was stopped. Returns the exit code. Raises AlreadyRunning."""
    with _lock(config.runtime_dir):
        killed = await reap(config.runtime_dir, tag_of(config.runtime_dir), config.systemd.service_result)
    if killed:
        log.warning("%d processes outlived the daemon that was stopped; they are killed", killed)
    return 0


class StopSignals:
    """SIGTERM and SIGINT as two flags: the first asks to stop, each later one not to wait for runs."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.asked_again = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._heard)
        for number in IGNORED:
            # not SIG_IGN, which everything that is executed would inherit
            loop.add_signal_handler(number, _ignore)

    def _heard(self) -> None:
        (self.asked_again if self.asked.is_set() else self.asked).set()


class Daemon:
    """Everything one daemon has. Invariant: `close` undoes `open`, in reverse, also when that was not finished."""

    def __init__(self, config: Config, listening: Listening) -> None:
        self._config = config
        self._given = listening
        # before anything is started: what cannot work must not leave anything behind
        check_place(config.control_socket)
        self._http = listening.http or (bind(config.http) if config.http is not None else None)
        self._isolation = detect(config.isolation)
        lib = make_lib_dir(config.runtime_dir / "lib")
        store = VersionStore(config.state_dir)
        store.prepare()
        self._logs = AgentLogs(config.state_dir / "logs")
        self._recorder = Recorder(config.state_dir / "runs.db", Settings(durability=config.durability),
                                  partial(_log_failed, asyncio.get_running_loop()))
        reached("daemon-log-open")
        self._remembered = Remembered(config.state_dir / "sessions.db", store.forget_session_state)
        self._engine = Engine(
            config.runtime_dir, self._isolation, find_interpreter(), lib,
            Policy(config.start_timeout_s, config.grace_s, config.stop_timeout_s), secrets.token_hex(4),
            self._recorder, self._remembered, self._log_line, lambda who, text: log.warning("%s: %s", who, text),
            self._rolled_back, config.debug)  # fmt: skip
        self._deployments = Deployments(store, self._engine, config, self._isolation, self._remembered)
        self._runs = Runs(self._engine, self._recorder)
        self._lag = LoopLag()
        service = Service(config, self._isolation, self._engine, self._deployments, store, self._logs, self._recorder,
                          self._runs, self._lag)
        self._control = ControlDoor(service, config.admin_group)
        self._fronts = (FrontDoors(self._control, self._http, config.http_doors, config.grace_s,
                                   tag_of(config.runtime_dir))
                        if self._http is not None else None)
        self._monitor: asyncio.TimerHandle | None = None
        self._notifier = Notifier(config.systemd.notify_socket)
        self._watchdog = Watchdog(self._notifier, config.systemd.watchdog_s, self._engine.turns)

    async def open(self) -> None:
        config = self._config
        if self._isolation.mode == "none":
            log.warning("agents run without walls: %s", self._isolation.reason)
        for problem in self._deployments.load_all():
            log.error("%s", problem)
        self._recorder.give_up_unfinished(self._deployments.deployed)
        # before anybody can ask for more: those who were accepted first are first
        self._runs.queue_again()
        await self._control.open(config.control_socket, self._given.control)
        if self._fronts is not None:
            self._fronts.open()
        reached("daemon-doors-open")
        self._sample()
        self._lag.start()
        self._watchdog.start()
        told = (f"control socket {config.control_socket}, http {config.http or 'off'}, "
                f"isolation {self._isolation.mode}, agents {len(self._deployments.deployed)}")
        self._notifier.say("READY=1", f"STATUS=ready: {told}")
        log.info("ready: %s", told)

    async def close(self, hurry: asyncio.Event) -> None:
        """Let runs finish for the stop timeout, or until `hurry`; then cancel them, and be gone within a grace and a
        second. Only a disk that does not keep up is waited for longer.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        told = f"stopping: runs have {config.stop_timeout_s:g} s to finish"
        self._notifier.say("STOPPING=1", f"STATUS={told}")
        log.info(told)
        reached("daemon-closing")
        over_at = loop.time() + config.stop_timeout_s
        self._control.stop_accepting()
        if self._fronts is not None and self._given.http is not None:
            # whoever comes now waits for the next daemon; whoever came before is not refused, but answered
            self._fronts.stop_accepting()
            await _first_of(config.stop_timeout_s, self._fronts.empty, hurry)
        self._engine.shut_down()
        await _first_of(over_at - loop.time(), self._engine.quiet, hurry)
        self._engine.cut_short()
        by = loop.time() + config.grace_s
        await asyncio.gather(self._end_processes(by), self._end_doors(by))
        if self._given.control is None:
            config.control_socket.unlink(missing_ok=True)
        await self._write_down()
        log.info("stopped")

    async def abandon(self) -> None:
        """Close the doors and write down what is known. Templates and workers are left as they are."""
        await self._close_doors(LAST_S)
        await self._write_down()

    async def _write_down(self) -> None:
        config = self._config
        await self._deployments.close(LAST_S)
        self._lag.stop()
        self._watchdog.stop()
        if self._monitor is not None:
            self._monitor.cancel()
        self._logs.close(LAST_S)
        self._remembered.close(config.stop_timeout_s)
        self._recorder.close(config.stop_timeout_s)

    async def _end_processes(self, by: float) -> None:
        """Until `by` they may leave by themselves."""
        loop = asyncio.get_running_loop()
        await _first_of(by - loop.time(), self._engine.stopped)
        if not self._engine.stopped.is_set():
            log.error("some processes did not leave in time; they are killed")
            await self._engine.processes.kill_all(STRAGGLERS_S)
            await _first_of(by + STRAGGLERS_S - loop.time(), self._engine.stopped)

    async def _end_doors(self, by: float) -> None:
        """When the last run is answered the doors go, with whoever does not read."""
        loop = asyncio.get_running_loop()
        await _first_of(by + STRAGGLERS_S - loop.time(), self._engine.quiet)
        if not await self._engine.ends.quiet(max(by - loop.time(), LAST_S)):
            log.error("some callers were not told how their runs ended: the disk does not keep up")
        await self._close_doors(max(by - loop.time(), LAST_S))

    async def _close_doors(self, left_s: float) -> None:
        closing = [self._control.close(left_s)]
        if self._fronts is not None:
            closing.append(self._fronts.close(left_s))
        await asyncio.gather(*closing)

    def _log_line(self, agent: str, row: dict[str, object]) -> None:
        self._logs.append(agent, {"time": time.time(), **row})

    def _rolled_back(self, effect: ef.RolledBack) -> None:
        self._deployments.rolled_back_to(effect)

    def _sample(self) -> None:
        """Look at one worker, and again soon."""
        workers = len(self._engine.supervisor.pool.workers)
        delay_s = max(MONITOR_PERIOD_S / max(workers, 1), MONITOR_LEAST_S)
        self._monitor = asyncio.get_running_loop().call_later(delay_s, self._sample)
        self._engine.processes.monitor.sample_next(self._engine.now())


async def _first_of(timeout_s: float, *events: asyncio.Event) -> None:
    """Returns when one of the events is set, or after `timeout_s`."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=max(timeout_s, 0), return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _ignore() -> None:
    """Somebody sent a signal that means nothing here. Not logged: a storm of them would fill the disk."""


def _allow_descriptors() -> None:
    """A worker costs three descriptors, a client one: the soft limit of a login shell is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fail(failed: "asyncio.Future[BaseException]", context: dict[str, object]) -> None:
    """An exception that nobody caught: something of ours is half done, or not done any more. What the kernel says of
    one connection (uvloop names its transport) is the end of that connection and no fault.
    """
    error = context.get("exception")
    log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
    of_a_peer = isinstance(error, OSError) and "transport" in context
    if isinstance(error, Exception) and not of_a_peer and not failed.done():
        failed.set_result(error)


class LogFailed(Exception):
    """The disk failed under the run log. What cannot be recorded may not go on."""


def _log_failed(loop: asyncio.AbstractEventLoop, reason: str) -> None:
    """In the run log's thread: have the daemon end."""
    with suppress(RuntimeError):  # the loop is closed: it ends already
        loop.call_soon_threadsafe(loop.call_exception_handler, {
            "message": "the run log has failed for good; no more runs are accepted", "exception": LogFailed(reason)})


def _lock(directory: Path) -> IO[str]:
    """Holds the state or runtime directory while it is open. Raises AlreadyRunning when another daemon has it."""
    _private(directory)
    lock = (directory / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyRunning(f"orpheusd is already running on {directory} (pid {holder})") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o750 if directory.parts[:2] == ("/", "run") else 0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable for this user")
    except OSError as error:
        raise OrpheusError(
            "invalid-request", f"cannot use {directory}: {error}; name another one with --state-dir or --runtime-dir"
        ) from error
