"""The daemon: puts the parts together in order, waits for a reason to stop, and takes them apart in order."""

import asyncio
import fcntl
import logging
import os
import resource
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import IO

from orpheusd.config import Config
from orpheusd.core import events as ev
from orpheusd.core.pool import Policy
from orpheusd.deploy.versions import VersionStore
from orpheusd.deployments import Deployments
from orpheusd.doors.control import ControlDoor
from orpheusd.doors.front import FrontDoors, bind
from orpheusd.engine import Engine
from orpheusd.errors import OrpheusError
from orpheusd.logs import AgentLogs
from orpheusd.process.sandbox import detect, find_interpreter, make_lib_dir
from orpheusd.recorder import Recorder
from orpheusd.remembered import Remembered
from orpheusd.runlog.settings import Settings
from orpheusd.runs import Runs
from orpheusd.service import Service

log = logging.getLogger(__name__)

#: Every worker is looked at about this often; one at a time, so that no look takes long.
MONITOR_PERIOD_S = 2.0
MONITOR_LEAST_S = 0.05


async def serve(config: Config) -> int:
    """Run until a signal says stop. Returns the exit code. Raises OrpheusError when it cannot start."""
    _allow_descriptors()
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[BaseException] = loop.create_future()
    loop.set_exception_handler(lambda _loop, context: _fail(failed, context))
    with _lock(config.state_dir):
        daemon = Daemon(config)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP is ignored"))
        await daemon.open()
        failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if failed.done():
            # half a daemon is worse than none: everything goes, and whoever supervises us starts a whole one
            log.critical("stopping because of a fault", exc_info=failed.result())
        await daemon.close()
        return 70 if failed.done() else 0


class Daemon:
    """Everything one daemon has. Invariant: `close` undoes `open`, in reverse."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # before anything is started: what cannot work must not leave anything behind
        self._http = bind(config.http) if config.http is not None else None
        self._isolation = detect(config.isolation)
        _private(config.runtime_dir)
        shutil.rmtree(config.runtime_dir / "t", ignore_errors=True)
        lib = make_lib_dir(config.runtime_dir / "lib")
        store = VersionStore(config.state_dir)
        store.prepare()
        self._logs = AgentLogs(config.state_dir / "logs")
        self._recorder = Recorder(config.state_dir / "runs.db", Settings(durability=config.durability))
        self._remembered = Remembered(config.state_dir / "sessions.db", store.forget_session_state)
        self._engine = Engine(
            config.runtime_dir, self._isolation, find_interpreter(), lib,
            Policy(config.start_timeout_s, config.grace_s, config.stop_timeout_s), secrets.token_hex(3),
            self._recorder, self._remembered, self._log_line, lambda who, text: log.warning("%s: %s", who, text),
            config.debug)  # fmt: skip
        self._deployments = Deployments(store, self._engine, config, self._isolation, self._remembered)
        self._runs = Runs(self._engine, self._recorder)
        service = Service(config, self._isolation, self._engine, self._deployments, store, self._logs, self._recorder,
                          self._runs)
        self._control = ControlDoor(service, config.admin_group)
        self._fronts = FrontDoors(self._control, self._http, config.http_doors) if self._http is not None else None
        self._monitor: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        config = self._config
        if self._isolation.mode == "none":
            log.warning("agents run without walls: %s", self._isolation.reason)
        for problem in self._deployments.load_all():
            log.error("%s", problem)
        # before anybody can ask for more: those who were accepted first are first
        self._runs.queue_again()
        await self._control.open(config.control_socket)
        if self._fronts is not None:
            self._fronts.open()
        self._sample()
        log.info("ready: control socket %s, http %s, isolation %s, agents %d", config.control_socket,
                 config.http or "off", self._isolation.mode, len(self._deployments.deployed))

    async def close(self) -> None:
        """Let runs finish, then stop every process. Bounded by the stop timeout and a few graces."""
        config = self._config
        log.info("stopping: runs have %g s to finish", config.stop_timeout_s)
        self._control.stop_accepting()
        self._engine.feed(ev.ShutdownRequested())
        try:
            async with asyncio.timeout(config.stop_timeout_s + 3 * config.grace_s):
                await self._engine.stopped.wait()
        except TimeoutError:
            log.error("some processes did not leave in time; they are killed")
            await self._engine.processes.kill_all(config.grace_s)
        if not await self._engine.ends.quiet(config.grace_s):
            log.error("some callers were not told how their runs ended: the disk does not keep up")
        if self._fronts is not None:
            await self._fronts.close(config.grace_s)
        await self._control.close(config.grace_s)
        if self._monitor is not None:
            self._monitor.cancel()
        config.control_socket.unlink(missing_ok=True)
        self._logs.close()
        self._remembered.close()
        self._recorder.close(config.stop_timeout_s)
        log.info("stopped")

    def _log_line(self, agent: str, row: dict[str, object]) -> None:
        self._logs.append(agent, {"time": time.time(), **row})

    def _sample(self) -> None:
        """Look at one worker, and again soon."""
        workers = len(self._engine.supervisor.pool.workers)
        delay_s = max(MONITOR_PERIOD_S / max(workers, 1), MONITOR_LEAST_S)
        self._monitor = asyncio.get_running_loop().call_later(delay_s, self._sample)
        self._engine.processes.monitor.sample_next(self._engine.now())


def _allow_descriptors() -> None:
    """A worker costs three descriptors, a client one: the soft limit of a login shell is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fail(failed: "asyncio.Future[BaseException]", context: dict[str, object]) -> None:
    """An exception that nobody caught. One in a callback of ours means that the engine may be half done."""
    error = context.get("exception")
    log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)
    if isinstance(error, Exception) and not isinstance(error, OSError) and not failed.done():
        failed.set_result(error)


def _lock(state_dir: Path) -> IO[str]:
    """Holds the state directory while it is open. Raises OrpheusError(conflict) when another daemon has it."""
    _private(state_dir)
    lock = (state_dir / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise OrpheusError("conflict", f"orpheusd is already running on {state_dir} (pid {holder})") from None
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
