"""The life of a worker whose handler is plain or a generator: one thread that reads, runs, and answers.

While the handler runs nobody reads, so a cancel comes through the doorbell. It knows no event loop.
"""

import contextlib
import contextvars
import os
import select
import signal
import sys
from collections.abc import Generator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from orpheusd.wire.worker import Message, ProtocolViolation
from orpheusd.worker import failures
from orpheusd.worker.channel import Channel, ChannelClosed
from orpheusd.worker.doorbell import Doorbell
from orpheusd.worker.handler import Handler, UnusableHandler
from orpheusd.worker.holdings import Holdings
from orpheusd.worker.hooks import DRAIN_LIMIT_S, Ends, finish_alone, start
from orpheusd.worker.launch import Setup
from orpheusd.worker.redial import EVERY_S, Patience
from orpheusd.worker.results import Pieces, encode
from orpheusd.worker.runs import RETURNED, Outcome, Run, completed, told
from workspace import Cancelled, TimedOut


class SyncRuns:
    """Runs the handler, one run after another.

    Invariant: between `arm` and the end of the `try` around it, and nowhere else, may a cancel raise.
    """

    def __init__(self, channel: Channel, handler: Handler, setup: Setup, worker_id: str) -> None:
        self.form = handler.form
        self._channel = channel
        self._holdings = Holdings()
        self._patience = Patience(setup.orphan_ttl_s)
        self._doorbell = Doorbell(channel, self._holdings)
        self._doorbell.redial = self._redial
        self._doorbell.install()
        self._function = handler.function
        self._setup = setup
        self._worker_id = worker_id
        self._ends = Ends(finish_alone, self._holdings)
        self._ending: dict[str, str] = {}
        self._stopping = False

    def start(self) -> None:
        """Call the hooks of the start. Raises what they raise."""
        start(finish_alone)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def serve(self) -> None:
        """Until `stop`, or until no supervisor came for too long. Raises ChannelClosed and ProtocolViolation."""
        while not (self._stopping and not self._holdings.runs):
            try:
                message = self._next(wait=not self._ending)
            except ChannelClosed:
                # also when told to stop: what is held is the only copy until a run log has it
                self._wait_for_supervisor()
                continue
            self._patience.heard()
            if message is None:
                # nobody waits for a run: the time for what is owed to sessions that are over
                self._ends.end(*self._ending.popitem())
            elif message.type == "run":
                session_id = message.fields["session_id"]
                if session_id in self._ending:
                    self._ends.end(session_id, self._ending.pop(session_id))
                self._execute(message)
            elif message.type == "session_end":
                self._ending[message.fields["session_id"]] = message.fields["reason"]
            elif message.type == "stop":
                while self._ending:
                    self._ends.end(*self._ending.popitem(), DRAIN_LIMIT_S)
                self._ends.drain()
                self._stopping = True
            # A cancel that comes here is of a run that is over.

    def _wait_for_supervisor(self) -> None:
        """Dial until somebody answers. Raises ChannelClosed when nobody has for too long."""
        again = self._patience.waiting
        self._patience.lost()
        with self._doorbell.dialling():
            # not lost: a ring has come just before this, and dialled; to dial again would end that connection
            while self._channel.lost and (again or not self._redial()):
                if self._patience.over:
                    raise ChannelClosed("no supervisor came")
                select.select((), (), (), EVERY_S)
                again = False

    def _redial(self) -> bool:
        """Whether there is a supervisor, and it was told everything. Never waits for one."""
        try:
            self._channel.redial()
            self._holdings.tell(self._channel.deliver, self.form)
        except OSError:
            return False
        except ChannelClosed:
            if not self._channel.lost:
                raise
            return False
        # who told us to stop is gone; the one that came knows nothing of that, and counts on us
        self._stopping = False
        return True

    def _next(self, wait: bool) -> Message | None:
        """The next message; None when there is none and `wait` is false."""
        while True:
            try:
                return self._doorbell.wait() if wait else self._doorbell.waiting_message()
            except (ChannelClosed, ProtocolViolation, MemoryError, SystemExit):
                raise
            except BaseException as error:
                text = failures.traceback_text(error)
                print(f"raised between two runs, by a signal handler that the agent left behind:\n{text}",
                      file=sys.stderr)

    def _execute(self, message: Message) -> None:
        run = Run(message, self._setup, self._worker_id, self._channel)
        self._doorbell.install()
        outcome = contextvars.copy_context().run(self._attempt, run)
        self._channel.regain()
        fields, payload = run.ended(outcome)
        self._holdings.ended(fields, payload)
        self._come_home()
        with contextlib.suppress(ChannelClosed):  # it is held; the next read finds that out, and dials again
            self._channel.deliver("ended", fields, payload)

    def _attempt(self, run: Run) -> Outcome:
        run.enter()
        doorbell = self._doorbell
        try:
            try:
                doorbell.arm(run.id)
                payload = self._call(run)
            finally:
                doorbell.disarm()
            if doorbell.reason is None:
                run.commit()
        except BaseException as error:
            return run.failure(error, doorbell.reason)
        if doorbell.reason is not None:
            return told(doorbell.reason, RETURNED)
        return completed(payload)

    def _call(self, run: Run) -> bytes:
        value = self._function(run.input())
        if isinstance(value, GeneratorType):
            return self._exhaust(value, run)
        if isinstance(value, CoroutineType | AsyncGeneratorType):
            if isinstance(value, CoroutineType):
                value.close()
            raise UnusableHandler(
                f"{self._setup.entrypoint!r} returned a {type(value).__name__}, but does not look like an async "
                "function; a decorator hides that: make the decorator's wrapper `async def` too")
        return encode(value, limit_bytes=self._setup.result_limit_bytes)

    def _exhaust(self, generator: Generator[Any, Any, Any], run: Run) -> bytes:
        """Send what the generator yields; its result is what it returns, else the list of the pieces."""
        pieces = Pieces(self._setup.result_limit_bytes)
        interruption: BaseException | None = None
        while True:
            try:
                value = next(generator) if interruption is None else generator.throw(interruption)
                interruption = None
            except StopIteration as end:
                if end.value is not None:
                    return encode(end.value, limit_bytes=self._setup.result_limit_bytes)
                return pieces.result()
            try:
                piece = pieces.add(value)
                if run.streams:
                    run.send_piece(piece)
            except (Cancelled, TimedOut) as told_between:
                interruption = told_between  # it came while we held the piece; the handler shall see it
            except BaseException:
                generator.close()
                raise

    def _come_home(self) -> None:
        """A relative path and a new file's mode mean the same in every run, and the doorbell is heard in it.

        What else a run changed of its process (modules, environment, locale, limits) is the memory it leaves.
        """
        try:
            os.chdir(self._setup.code_dir)
        except OSError as error:
            print(f"cannot return to {self._setup.code_dir}: {error}", file=sys.stderr)
        os.umask(self._umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
