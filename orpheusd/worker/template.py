"""The process that forks an agent version's workers: no event loop, no threads, one blocking poll.

It reads its launch line, dials home, takes its setup, and then forks, reaps and reports. In between it drains
what its workers write to fds 1 and 2. It never runs a handler; with `preload` it imports the agent's module
before the first fork, so that workers share its memory. The only file here that forks, waits and kills. What a
worker needs (asyncio too) is imported here and thus inherited, but no loop is made.
"""

import faulthandler
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import dataclass

from orpheusd.wire.worker import Message, ProtocolViolation, Role
from orpheusd.worker import failures, handler, output, sheet
from orpheusd.worker import main as worker_main
from orpheusd.worker.channel import ChannelClosed, dial
from orpheusd.worker.children import Children, Death
from orpheusd.worker.confinement import confine
from orpheusd.worker.drains import Drains, Line, open_pipe
from orpheusd.worker.inheritance import (
    become_subreaper,
    open_fds,
    reset_after_fork,
    silence_output,
    threads_started,
)
from orpheusd.worker.launch import EXIT_CANNOT_FORK, EXIT_CANNOT_START, EXIT_CHANNEL, Birth, Launch, Setup, read_launch
from orpheusd.worker.redial import EVERY_S, Patience

#: The setup comes as soon as the daemon has seen our hello.
SETUP_LIMIT_S = 30.0
#: How long the pipes of a dead worker are read on: its grandchildren may hold them open.
LAST_WORDS_S = 0.1
#: Between SIGTERM and SIGKILL for the workers, when the template stops. Runs were ended before that.
STOP_GRACE_S = 0.5
BURIALS_AT_ONCE = 256
KILL_AGAIN_S = 0.05
#: After SIGKILL only the kernel's own work is left.
BURY_LIMIT_S = 2.0


def main() -> None:
    """The program: a template, and in its forked children a worker."""
    faulthandler.enable(file=2)
    gc.disable()
    output.install()
    try:
        template = Template(read_launch())
        birth = template.serve()
        del template
    except (OSError, ValueError, ChannelClosed, ProtocolViolation) as error:
        print(f"orpheus template cannot go on: {type(error).__name__}: {error}", file=sys.__stderr__)
        os._exit(EXIT_CHANNEL)
    if birth is not None:
        worker_main.live(birth)
    os._exit(0)  # what a preloaded module does at exit is for the workers to do


@dataclass(slots=True)
class Dying:
    """A worker that is buried but not yet reported: its pipes may still hold its last words."""

    death: Death
    deadline: float


class Template:
    """Forks workers and buries them.

    Invariant: every `fork` is answered by exactly one `exited`, after the last of that worker's output; every
    fd of ours closes on exec, and in a forked child.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._setup: Setup | None = None
        self._children = Children()
        self._dying: list[Dying] = []
        self._sheets: dict[str, int] = {}
        self._nonces: dict[str, str] = {}
        self._preloaded: frozenset[int] = frozenset()
        self._more_dead = False
        self._patience: Patience | None = None
        self._redial_at: float | None = None
        self._kill_at: float | None = None
        self._give_up_at = 0.0
        self._poll = select.poll()
        self._drains = Drains(self._poll, self._say)
        become_subreaper()
        self._wakeup = _catch_signals()
        self._channel = dial(launch.socket, Role.TEMPLATE, launch.template_id, launch.nonce)
        self._setup_deadline = time.monotonic() + SETUP_LIMIT_S
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(self._channel.fileno(), select.POLLIN)

    def serve(self) -> Birth | None:
        """Until everything is stopped (None), or in a forked child, what that child is to become."""
        try:
            while not self._is_over():
                birth = self._turn()
                if birth is not None:
                    return birth
        except BaseException:
            self._kill_all()
            raise
        self._report(time.monotonic() + LAST_WORDS_S)
        self._channel.flush(LAST_WORDS_S)
        return None

    def _turn(self) -> Birth | None:
        """Wait for something and deal with it."""
        channel = self._channel.fileno()
        if not self._channel.lost:
            self._poll.modify(channel, select.POLLIN | (select.POLLOUT if self._channel.backlogged else 0))
        events = dict(self._poll.poll(self._patience_ms()))
        now = time.monotonic()
        birth = self._deal_with_channel(events.pop(channel, 0), now)
        if birth is not None:
            return birth
        if events.pop(self._wakeup, 0) or self._more_dead:
            self._deal_with_signals(now)
        for fd in events:
            self._drains.read(fd, now)
        self._drains.resume(now)
        self._report(now)
        if self._redial_at is not None and now >= self._redial_at:
            self._redial(now)
        if self._setup is None and now > self._setup_deadline:
            raise ChannelClosed(f"no setup came within {SETUP_LIMIT_S:.0f} s")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_all()
            self._kill_at = now + KILL_AGAIN_S
        return None

    def _is_over(self) -> bool:
        if self._kill_at is None:
            return False
        return not self._children.all() or time.monotonic() > self._give_up_at

    def _stop(self, now: float) -> None:
        """End the workers, then whatever is left; in bounded time."""
        if self._kill_at is None:
            for pid in self._children.workers:
                _kill(pid, signal.SIGTERM)
            self._kill_at = now + (STOP_GRACE_S if self._children.workers else 0)
            self._give_up_at = self._kill_at + BURY_LIMIT_S

    def _patience_ms(self) -> int | None:
        """Until the next thing that is due without an event; None when there is none."""
        if self._more_dead:
            return 0
        due = [dying.deadline for dying in self._dying]
        due += self._drains.due()
        if self._setup is None:
            due.append(self._setup_deadline)
        if self._kill_at is not None:
            due.append(self._kill_at)
        if self._redial_at is not None:
            due.append(self._redial_at)
        if not due:
            return None
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1)

    def _deal_with_channel(self, events: int, now: float) -> Birth | None:
        if events & select.POLLOUT:
            self._channel.write()
        if not events & ~select.POLLOUT:
            return None
        try:
            messages = self._channel.receive(socket.MSG_DONTWAIT)
        except ChannelClosed:
            self._lose(now)
            return None
        for message in messages or ():
            birth = self._hear(message, now)
            if birth is not None:
                return birth
        return None

    def _lose(self, now: float) -> None:
        """The supervisor is gone. Its workers have what nobody else has, so they live on until another comes."""
        self._poll.unregister(self._channel.fileno())
        if self._setup is None or self._patience is None:
            self._stop(now)
            return
        silence_output()
        self._redial_at = now + EVERY_S if self._patience.waiting else now
        self._patience.lost()

    def _redial(self, now: float) -> None:
        if self._patience is None or self._patience.over:
            self._redial_at = None
            self._stop(now)
            return
        try:
            self._channel.redial()
        except OSError:
            self._redial_at = now + EVERY_S
            return
        self._redial_at = None
        self._poll.register(self._channel.fileno(), select.POLLIN)
        workers = [[id, self._nonces[id]] for id in self._children.workers.values()]
        self._channel.queue("workers", {}, json.dumps(workers).encode())
        self._channel.queue("ready", {"handler": ""})

    def _hear(self, message: Message, now: float) -> Birth | None:
        if self._patience is not None:
            self._patience.heard()
        if message.type == "fork" and self._setup is not None:
            return self._fork(message.fields["worker_id"], message.fields["nonce"], self._setup)
        if message.type == "stop":
            self._stop(now)
        elif message.type == "setup":
            self._prepare(Setup.read(message.payload))
        elif message.type == "ring":
            for pid in self._children.workers:
                _kill(pid, signal.SIGUSR1)
        elif message.type == "kill":
            for pid in [pid for pid, id in self._children.workers.items() if id == message.fields["worker_id"]]:
                _kill(pid, signal.SIGKILL)
        else:
            raise ProtocolViolation(f"{message.type!r} is not for a template")
        return None

    def _prepare(self, setup: Setup) -> None:
        """Become the agent's, as every worker shall be, and import its module if that is to be shared."""
        try:
            confine(setup.isolation == "bwrap")
            worker_main.settle(setup)
            if setup.preload:
                before = open_fds()
                handler.load(setup)
                self._preloaded = open_fds() - before
                self._warn_of_threads()
            else:
                handler.look_up(setup)
        except BaseException as error:
            payload = failures.describe(error, handler.import_failure_text(error))
            self._channel.deliver("failed", {"code": "handler-failed"}, payload)
            os._exit(EXIT_CANNOT_START)
        self._setup = setup
        self._patience = Patience(setup.orphan_ttl_s)
        gc.collect()
        gc.freeze()
        self._channel.queue("ready", {"handler": ""})

    def _warn_of_threads(self) -> None:
        count = threads_started()
        if count:
            print(f"warning: with preload the module is imported once, before workers are forked; the {count} "
                  "thread(s) it started at import do not exist in the workers", file=sys.stderr)

    def _fork(self, worker_id: str, nonce: str, setup: Setup) -> Birth | None:
        """Make a worker. The child gets its Birth, the parent None."""
        made: list[int] = []
        try:
            if self._kill_at is not None:
                raise OSError("the template is stopping")
            made += open_pipe()
            made += open_pipe()
            made.append(sheet.blank())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads of a preloaded module, warned of
                pid = os.fork()
        except OSError as error:
            for fd in made:
                os.close(fd)
            self._say(worker_id, "stderr", Line(f"cannot fork a worker: {error}", 0))
            self._tell_exited(Death(worker_id, EXIT_CANNOT_FORK, 0), "")
            return None
        stdout, stdout_writer, stderr, stderr_writer, stack = made
        if pid == 0:
            try:
                self._channel.abandon()
                stack = reset_after_fork(stdout_writer, stderr_writer, stack, self._preloaded)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(EXIT_CANNOT_START)
            return Birth(worker_id, nonce, self._launch.socket, setup, stack)
        self._children.workers[pid] = worker_id
        self._sheets[worker_id], self._nonces[worker_id] = stack, nonce
        os.close(stdout_writer)
        os.close(stderr_writer)
        self._drains.add(worker_id, stdout, stderr, time.monotonic())
        return None

    def _deal_with_signals(self, now: float) -> None:
        try:
            numbers = os.read(self._wakeup, 4096)
        except BlockingIOError:
            numbers = b""
        if signal.SIGTERM in numbers:
            self._stop(now)
        self._bury(now)
        for pid in self._children.take_orphans():
            _kill(pid, signal.SIGKILL)

    def _bury(self, now: float) -> None:
        """Wait for the dead, with an end: a flood of zombies must not keep us from forking."""
        self._more_dead = True
        for _ in range(BURIALS_AT_ONCE):
            # First look, then signal the group, then wait: until then the zombie keeps the number taken.
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            if found is None:
                self._more_dead = False
                return
            if found.si_pid in self._children.workers:
                _kill_group(found.si_pid)
            _, status, used = os.wait4(found.si_pid, 0)
            death = self._children.buried(found.si_pid, os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024)
            if death is not None:
                self._dying.append(Dying(death, now + LAST_WORDS_S))

    def _kill_all(self) -> None:
        for pid in self._children.workers:
            _kill_group(pid)
        for pid in self._children.all():
            _kill(pid, signal.SIGKILL)

    def _report(self, now: float) -> None:
        """Report the dead whose last words are out, or had their time."""
        for dying in list(self._dying):
            worker_id = dying.death.worker_id
            if self._drains.is_open(worker_id):
                if now < dying.deadline:
                    continue
                self._drains.finish(worker_id, now)
            self._dying.remove(dying)
            del self._nonces[worker_id]
            self._tell_exited(dying.death, sheet.taken(self._sheets.pop(worker_id)))

    def _tell_exited(self, death: Death, stack: str) -> None:
        self._channel.queue("exited", {**death._asdict(), "stack": stack})

    def _say(self, worker_id: str, stream: str, line: Line) -> bool:
        return self._channel.log({
            "worker_id": worker_id, "run_id": None, "session_id": None, "stream": stream, "text": line.text,
            "dropped_bytes": line.dropped_bytes,
        })


def _catch_signals() -> int:
    """SIGCHLD and SIGTERM become bytes on the fd that is returned; SIGINT and SIGHUP are the daemon's affair.

    SIGUSR1 is for workers: one that was just forked has this handler until it has its own.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _noted)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reader


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _noted(signum: int, frame: object) -> None:
    """The wakeup fd tells; but without a handler in Python there would be no byte."""
