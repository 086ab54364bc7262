"""The daemon: puts the parts together in order, waits for a reason to stop, and takes them apart in order.

Or it takes them half apart and executes itself anew; what must not close meanwhile is handed to the next image.
"""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import orpheusd
from orpheusd.audit import Audit
from orpheusd.config import Config, environ_with
from orpheusd.core import effects as ef
from orpheusd.core.pool import Policy
from orpheusd.deploy.versions import VersionStore
from orpheusd.deployments import Deployments
from orpheusd.directories import hold
from orpheusd.doors.control import ControlDoor
from orpheusd.doors.front import FrontDoors, listen, tag_of
from orpheusd.doors.place import check_place
from orpheusd.engine import Engine
from orpheusd.errors import EXIT_FAULT
from orpheusd.failpoints import reached
from orpheusd.handover import Handover, pack, unpack
from orpheusd.heap import give_back_large_blocks, spare_what_is_there
from orpheusd.lag import LoopLag
from orpheusd.logs import AgentLogs
from orpheusd.process.child import kill_leftovers
from orpheusd.process.claims import claim
from orpheusd.process.groups import delegated
from orpheusd.process.image import become
from orpheusd.process.inherited import reap_inherited
from orpheusd.process.reaper import reap
from orpheusd.process.sandbox import detect, find_interpreter, make_lib_dir
from orpheusd.quotas import Quotas
from orpheusd.recorder import Recorder
from orpheusd.reload import Reload
from orpheusd.remembered import Remembered
from orpheusd.runlog.settings import Settings
from orpheusd.runs import Runs
from orpheusd.sampling import Sampling
from orpheusd.service import Service
from orpheusd.systemd import Listening, Notifier, Watchdog, handed_over

log = logging.getLogger(__name__)

RELOAD = signal.SIGHUP
STOPPING = (signal.SIGTERM, signal.SIGINT)
#: Signals that would end a process that does not expect them. Nobody has a reason to send one, and nobody's mistake
#: shall stop the daemon. Those that say that the process is broken (SIGSEGV, SIGABRT, ...) do end it.
IGNORED = (
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    signal.SIGSTKFLT, signal.SIGXCPU,
)  # fmt: skip

#: After the last grace: what was killed is mourned (its last words take half a second), and its runs are answered.
STRAGGLERS_S = 0.6
#: The least that doors get to pass on a last answer, and the most that lines get to be written down.
LAST_S = 0.2


#: What front doors, and the run log, may be behind before large results wait: everybody's small answers are behind
#: these bytes at a door; the log takes no more runs at twice as many (runlog/settings.py).
DOOR_BEHIND_BYTES, LOG_BEHIND_BYTES = 4 * 1024 * 1024, 32 * 1024 * 1024

async def serve(config: Config, configure: Callable[[], Config], left: int | None) -> int:
    """Run until a signal says stop. Returns the exit code. Raises OrpheusError when it cannot start.

    `configure` reads the settings again; `left` is the descriptor of what an earlier image of this process has left.
    """
    claim()
    give_back_large_blocks()
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[BaseException] = loop.create_future()
    loop.set_exception_handler(lambda _loop, context: _fail(failed, context))
    handed = unpack(left) if left is not None else None
    if left is not None and handed is None and config.systemd.listen_fds:
        # they are not where systemd had put them
        log.critical("leaving, for systemd to start a daemon with its sockets: what was handed over is not understood")
        return EXIT_FAULT
    listening = (handed_over(config.systemd.listen_fds) if handed is None
                 else Listening.again(handed.http, handed.control, handed.kept))
    if "http" in listening.kept:
        config = replace(config, http=listening.http_name)
    if left is not None:
        reap_inherited([door.pid for door in handed.doors] if handed is not None else ())
    stop = Signals()
    with (hold(config.state_dir, handed.state_lock if handed is not None else None) as state_lock,
          hold(config.runtime_dir, handed.runtime_lock if handed is not None else None) as runtime_lock):
        reached("daemon-locked")
        if handed is None:
            # a door that has not noticed yet that its daemon was killed still holds the port
            await kill_leftovers(tag_of(config.runtime_dir))
            if config.http is not None and not listening.http:
                listening = listening._replace(http=await listen(config.http, config.runtime_dir))
        daemon, opened = Daemon(config, Reload(config, configure, listening.kept), listening, handed), False
        try:
            await daemon.open()
            opened = True
            failed.add_done_callback(lambda _: stop.asked.set())
            while not stop.asked.is_set():
                await daemon.attend(stop)
                if not stop.asked.is_set():
                    await daemon.reload(stop, state_lock.fileno(), runtime_lock.fileno())
            if failed.done():
                # half a daemon is worse than none: it goes, and whoever supervises us starts a whole one, for which
                # the workers wait with what is in them
                log.critical("leaving because of a fault", exc_info=failed.result())
        finally:
            # what was adopted by a daemon that did not come up is for the next one
            await (daemon.close(stop.asked_again) if opened and not failed.done() else daemon.abandon())
        return EXIT_FAULT if failed.done() else 0


async def clean_up(config: Config) -> int:
    """End what a daemon has left behind that was stopped. Returns the exit code. Raises AlreadyRunning."""
    with hold(config.runtime_dir, None):
        killed = await reap(config.runtime_dir, tag_of(config.runtime_dir), config.systemd.service_result)
    if killed:
        log.warning("%d processes outlived the daemon that was stopped; they are killed", killed)
    return 0


class Signals:
    """SIGTERM and SIGINT as two flags: the first asks to stop, each later one not to wait for runs; SIGHUP as a third:
    it asks for a reload. Those that came while this image was not there yet have waited.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.asked_again = asyncio.Event()
        self.reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._heard)
        for number in IGNORED:
            # not SIG_IGN, which everything that is executed would inherit
            loop.add_signal_handler(number, _ignore)
        loop.add_signal_handler(RELOAD, self.reload.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {RELOAD, *STOPPING, *IGNORED})

    def keep(self) -> None:
        """Let what comes from now on wait for the next image, which it would end before that has handlers.

        A thread that does not block it may take it for us; then it is sent to this thread, which does.
        """
        numbers = {RELOAD, *STOPPING, *IGNORED}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            signal.signal(number, lambda number, _frame: signal.raise_signal(number))

    def pass_on(self) -> None:
        """To be called last: what was heard and not acted on is the next image's to hear."""
        if self.asked.is_set():
            signal.raise_signal(STOPPING[0])

    def _heard(self) -> None:
        (self.asked_again if self.asked.is_set() else self.asked).set()


class Daemon:
    """Everything one daemon has. Invariant: `close` undoes `open`, in reverse; `abandon` lets go of what it has, also
    when that was not finished. `handed` is what an earlier image of this process has left.
    """

    def __init__(self, config: Config, reload: Reload, listening: Listening, handed: Handover | None) -> None:
        self._config = config
        self._reload = reload
        self._listening = listening
        self._handed = handed
        # before anything is started: what cannot work must not leave anything behind
        check_place(config.control_socket)
        self._http = listening.http if config.http is not None else ()
        self._isolation = detect(config.isolation)._replace(units=config.systemd.agents_socket)
        lib = make_lib_dir(config.runtime_dir / "lib")
        store = VersionStore(config.state_dir)
        store.prepare()
        self._logs = AgentLogs(config.state_dir / "logs")
        self._recorder = Recorder(
            config.state_dir / "runs.db", Settings(durability=config.durability, capture=config.run_log_capture),
            partial(_log_failed, asyncio.get_running_loop()))
        reached("daemon-log-open")
        self._remembered = Remembered(config.state_dir / "sessions.db", store.forget_session_state)
        self._engine = Engine(
            config.runtime_dir, self._isolation, find_interpreter(), lib,
            Policy(config.start_timeout_s, config.grace_s, config.stop_timeout_s), secrets.token_hex(4),
            self._recorder, self._remembered, self._log_line, lambda who, text: log.warning("%s: %s", who, text),
            self._rolled_back, config.debug)  # fmt: skip
        self._engine.processes.limits.use(*delegated(self._isolation.units is not None))
        self._deployments = Deployments(store, self._engine, config, self._isolation, self._remembered)
        self._quotas = Quotas(store, self._deployments.deployed, self._engine)
        self._runs = Runs(self._engine, self._recorder, self._quotas)
        self._lag = LoopLag()
        self._service = Service(config, self._isolation, self._engine, self._deployments, store, self._logs,
                                self._recorder, self._remembered, self._runs, self._lag, self._quotas, reload)
        self._audit = Audit(config.state_dir / "audit.log")
        self._control = ControlDoor(self._service, config.admin_group, self._audit)
        self._engine.processes.room.takers = [
            (self._control.unread_bytes, DOOR_BEHIND_BYTES), (self._recorder.pending_bytes, LOG_BEHIND_BYTES)]
        self._fronts = FrontDoors(self._control, self._http, config, self._isolation) if self._http else None
        self._sampling = Sampling(self._engine)
        self._notifier = Notifier(config.systemd.notify_socket)
        self._watchdog = Watchdog(self._notifier, config.systemd.watchdog_s, self._engine.turns)

    async def open(self) -> None:
        config = self._config
        if self._isolation.mode == "none":
            log.warning("agents run without walls: %s", self._isolation.reason)
        for weakness in self._isolation.weaknesses:
            log.warning("%s", weakness)
        for problem in self._deployments.load_all():
            log.error("%s", problem)
        self._recorder.give_up_unfinished(self._deployments.deployed)
        # before anybody can ask for more: those who were accepted first are first
        self._runs.queue_again()
        handed = self._handed
        await self._control.open(config.control_socket, self._listening.control)
        if self._fronts is not None:
            self._fronts.open(handed.doors if handed is not None else ())
        if handed is not None:
            await self._resume(handed)
        reached("daemon-doors-open")
        self._sampling.start()
        self._lag.start()
        self._quotas.start()
        self._watchdog.start()
        spare_what_is_there()
        told = (f"control socket {config.control_socket}, http {config.http or 'off'}, "
                f"isolation {self._isolation.mode}, agents {len(self._deployments.deployed)}")
        self._notifier.say("READY=1", f"STATUS=ready: {told}")
        log.info("ready: %s", told)

    async def _resume(self, handed: Handover) -> None:
        """Go on with the clients of the image before."""
        paused_s = round(time.monotonic() - handed.paused_at, 3)
        self._control.reloaded = {
            "pid": os.getpid(), "version": orpheusd.__version__, "before": handed.version, "paused_s": paused_s}
        await self._control.resume(handed.clients)
        log.info("reloaded: version %s after %s; callers waited %g s", orpheusd.__version__, handed.version, paused_s)

    async def attend(self, signals: Signals) -> None:
        """Returns when a stop is asked for, or a reload that can be."""
        while not signals.asked.is_set() and not self._reload.granted.is_set():
            await _first_of(None, signals.asked, signals.reload, self._reload.granted)
            if signals.reload.is_set():
                signals.reload.clear()
                self._reload.ask_soon()

    async def reload(self, signals: Signals, state_lock: int, runtime_lock: int) -> None:
        """Become the program as it is on disk now. Returns only when a stop is asked for meanwhile.

        Callers wait: for the stop timeout at most until what they have asked is answered, then for the next image.
        """
        config, paused_at = self._config, time.monotonic()
        told = f"reloading: callers have {config.stop_timeout_s:g} s to be answered"
        self._notifier.say("RELOADING=1", f"STATUS={told}")
        log.info(told)
        self._control.hold()
        self._service.let_followers_go()
        self._runs.let_watchers_go()
        await _first_of(config.stop_timeout_s, self._control.answered, signals.asked)
        if signals.asked.is_set():
            await self._control.release("control" not in self._listening.kept)
            return
        signals.keep()
        await self._engine.hold(LAST_S)
        await self._control.let_go(LAST_S)
        await self._write_down()
        # from here on nothing turns: what is heard now is not recorded, and the next image hears it again
        control, clients = self._control.hand_over()
        left = pack(Handover(
            orpheusd.__version__, paused_at, state_lock, runtime_lock, control,
            [sock.fileno() for sock in self._http], self._listening.kept, clients,
            self._fronts.hand_over() if self._fronts is not None else []))
        signals.pass_on()
        try:
            become(environ_with(left))
        except OSError as error:
            # the log is closed: what can be done now is what a killed daemon does, and the next one has everything
            log.critical("cannot execute the daemon anew: %s", error)
            os._exit(EXIT_FAULT)

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
        if self._fronts is not None and "http" in self._listening.kept:
            # whoever comes now waits for the next daemon; whoever came before is not refused, but answered
            self._fronts.stop_accepting()
            await _first_of(config.stop_timeout_s, self._fronts.empty, hurry)
        # runs of before go on where nobody has looked yet, and results are there that nobody else has
        if self._engine.supervisor.adopts:
            await _first_of(over_at - loop.time(), self._engine.adopted, hurry)
        self._engine.shut_down()
        await _first_of(over_at - loop.time(), self._engine.quiet, hurry)
        self._engine.cut_short()
        by = loop.time() + config.grace_s
        await asyncio.gather(self._end_processes(by), self._end_doors(by))
        if "control" not in self._listening.kept:
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
        self._quotas.stop()
        self._watchdog.stop()
        self._sampling.stop()
        self._logs.close(LAST_S)
        self._audit.close(LAST_S)
        self._remembered.close(config.stop_timeout_s)
        self._recorder.close(config.stop_timeout_s)
        self._notifier.close()

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


async def _first_of(timeout_s: float | None, *events: asyncio.Event) -> None:
    """Returns when one of the events is set, or after `timeout_s`."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    timeout_s = None if timeout_s is None else max(timeout_s, 0)
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _ignore() -> None:
    """Somebody sent a signal that means nothing here. Not logged: a storm of them would fill the disk."""


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
