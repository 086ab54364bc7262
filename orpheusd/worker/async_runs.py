"""The life of a worker whose handler is async: one event loop for as long as the worker lives.

Up to `concurrency` runs share the loop, each a task of its own with its own context; connections and
background tasks that the agent keeps stay warm between runs. The loop reads the channel, so a cancel needs no
doorbell. It knows no signals.
"""

import asyncio
import contextlib
import socket
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from orpheusd.wire.worker import Message, ProtocolViolation
from orpheusd.worker import failures
from orpheusd.worker.channel import Channel, ChannelClosed
from orpheusd.worker.handler import ASYNC_GENERATOR, Handler
from orpheusd.worker.holdings import Holdings
from orpheusd.worker.hooks import Ends, start
from orpheusd.worker.launch import Setup
from orpheusd.worker.notes import Notes, where
from orpheusd.worker.redial import EVERY_S, Patience
from orpheusd.worker.results import Pieces, encode
from orpheusd.worker.runs import RETURNED, Outcome, Run, completed, reason_of, told

#: How long tasks that the agent left behind may take to end once the worker leaves.
FAREWELL_S = 1.0


class AsyncRuns:
    """Runs the handler, several runs at a time.

    Invariant: every `run` message gets exactly one `ended`, also when its cancel overtakes its first step;
    no more than `concurrency` handlers are inside at once.
    """

    def __init__(self, channel: Channel, handler: Handler, setup: Setup, worker_id: str, notes: Notes) -> None:
        self.form = handler.form
        self._channel = channel
        self._handler = handler
        self._setup = setup
        self._worker_id = worker_id
        self._notes = notes
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reasons: dict[str, str] = {}
        self._inside: set[str] = set()
        self._waiting: deque[Message] = deque()
        self._flowing = asyncio.Event()
        self._thread = threading.get_ident()
        self._leaving = False
        self._lost: BaseException | None = None
        self._holdings = Holdings()
        self._patience = Patience(setup.orphan_ttl_s)
        self._ends = Ends(self._finish, self._holdings)
        self._hooks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Call the hooks of the start, on the loop. Raises what they raise."""
        asyncio.set_event_loop(self._loop)
        start(self._finish)

    def serve(self) -> None:
        """Until `stop`, or until no supervisor came for too long. Raises ChannelClosed and ProtocolViolation."""
        asyncio.set_event_loop(self._loop)
        self._flowing.set()
        self._channel.on_blocked = self._blocked
        self._loop.add_reader(self._channel.fileno(), self._readable)
        while not self._is_over():
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                text = failures.traceback_text(error)  # runs catch their own
                print(f"raised by a task or signal handler outside of any run:\n{text}", file=sys.stderr)
        if self._channel.is_ours:
            self._farewell()
        if self._lost is not None:
            raise self._lost

    def _is_over(self) -> bool:
        return self._lost is not None or (self._leaving and not self._tasks and not self._holdings.runs)

    def _readable(self) -> None:
        try:
            messages = self._channel.receive(socket.MSG_DONTWAIT)
        except (ChannelClosed, ProtocolViolation) as error:
            self._lose(error)
            return
        if messages:
            self._patience.heard()
        for message in messages or ():
            self._holdings.heard(message)
            self._hear(message)
        if self._is_over():
            self._loop.stop()

    def _hear(self, message: Message) -> None:
        if message.type == "run":
            if len(self._tasks) < self._setup.concurrency:
                self._begin(message)
            else:
                self._waiting.append(message)
        elif message.type == "cancel":
            self._cancel(message.fields["run_id"], reason_of(message))
        elif message.type == "session_end":
            self._ends.end(message.fields["session_id"], message.fields["reason"])
        elif message.type == "stop":
            self._leaving = True

    def _begin(self, message: Message) -> None:
        run_id = message.fields["run_id"]
        self._tasks[run_id] = self._loop.create_task(self._execute(message), name=f"orpheus run {run_id}")

    def _cancel(self, run_id: str, reason: str) -> None:
        if run_id in self._tasks or any(message.fields["run_id"] == run_id for message in self._waiting):
            self._reasons.setdefault(run_id, reason)
            if run_id in self._inside:
                self._notes.add(run_id, where(self._tasks[run_id].get_coro()))
                self._tasks[run_id].cancel()

    async def _execute(self, message: Message) -> None:
        run = Run(message, self._setup, self._worker_id, self._channel)
        run.enter()
        outcome = await self._attempt(run)
        fields, payload = run.ended(outcome)
        self._holdings.ended(fields, payload)
        del self._tasks[run.id]
        self._reasons.pop(run.id, None)
        self._notes.remove(run.id)
        self._channel.regain()
        try:
            self._channel.check()
            self._channel.queue("ended", fields, payload)
        except ChannelClosed as error:
            if not (self._channel.lost and self._channel.is_ours):  # else it is held, and we are dialling already
                self._lose(error)
        if self._waiting and self._lost is None:
            self._begin(self._waiting.popleft())
        elif self._is_over():
            self._loop.stop()

    async def _attempt(self, run: Run) -> Outcome:
        try:
            self._inside.add(run.id)
            try:
                if run.id in self._reasons:
                    return told(self._reasons[run.id], "before its handler began")
                payload = await self._call(run)
            finally:
                self._inside.discard(run.id)
            if run.id not in self._reasons:
                run.commit()
        except BaseException as error:
            return run.failure(error, self._reasons.get(run.id))
        reason = self._reasons.get(run.id)
        return completed(payload) if reason is None else told(reason, RETURNED)

    async def _call(self, run: Run) -> bytes:
        value = self._handler.function(run.input())
        if self._handler.form == ASYNC_GENERATOR:
            return await self._exhaust(value, run)
        return encode(await value, limit_bytes=self._setup.result_limit_bytes)

    async def _exhaust(self, generator: AsyncGenerator[Any, None], run: Run) -> bytes:
        """Send what the generator yields; its result is the list of the pieces."""
        pieces = Pieces(self._setup.result_limit_bytes)
        async with contextlib.aclosing(generator):
            async for value in generator:
                piece = pieces.add(value)
                if pieces.overflowed:
                    break
                if run.streams:
                    run.queue_piece(piece)
                    await self._flowing.wait()
                await asyncio.sleep(0)  # a generator that never waits must not keep a cancel out
        return pieces.result()

    def _blocked(self) -> None:
        """The socket is full. Called by whoever wrote, which may be another thread."""
        if threading.get_ident() == self._thread:
            self._await_room()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker flushes when it leaves
            self._loop.call_soon_threadsafe(self._await_room)

    def _await_room(self) -> None:
        if self._channel.backlogged:
            self._flowing.clear()
            self._loop.add_writer(self._channel.fileno(), self._room)

    def _room(self) -> None:
        self._channel.write()
        if not self._channel.backlogged:
            self._loop.remove_writer(self._channel.fileno())
            self._flowing.set()

    def _finish(self, coroutine: Any, limit_s: float) -> None:
        """See an async hook to its end: now, or beside the runs when the loop is turning."""
        if not self._loop.is_running():
            self._loop.run_until_complete(asyncio.wait_for(coroutine, limit_s))
            return
        task = self._loop.create_task(self._logged(coroutine, limit_s))
        self._hooks.add(task)
        task.add_done_callback(self._hooks.discard)

    async def _logged(self, coroutine: Any, limit_s: float) -> None:
        try:
            await asyncio.wait_for(coroutine, limit_s)
        except Exception as error:  # the agent's own, whatever it is; the session ends all the same
            print(f"a hook raised:\n{failures.traceback_text(error)}", file=sys.stderr)

    def _lose(self, error: BaseException) -> None:
        """The channel ended: dial until somebody answers, unless we leave and hold nothing. Anything else is the end
        of the worker."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._flowing.set()
        owes = bool(self._holdings.runs) or not self._leaving
        if not isinstance(error, ChannelClosed) or not self._channel.lost or not owes:
            self._lost = self._lost or error
            self._loop.stop()
        else:
            self._loop.call_later(EVERY_S if self._patience.waiting else 0, self._redial)
            self._patience.lost()

    def _redial(self) -> None:
        try:
            self._channel.redial()
        except OSError:
            if self._patience.over:
                self._lost = ChannelClosed("no supervisor came")
                self._loop.stop()
            else:
                self._loop.call_later(EVERY_S, self._redial)
            return
        except ChannelClosed as error:
            self._lost = error
            self._loop.stop()
            return
        # who told us to leave is gone; the one that came knows nothing of that, and counts on us
        self._leaving = False
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._holdings.tell(self._channel.queue, self.form)

    def _farewell(self) -> None:
        """Let what the agent left in the loop end in order; not for long."""
        self._ends.drain()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError):
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=FAREWELL_S))
            self._loop.run_until_complete(asyncio.wait_for(self._loop.shutdown_asyncgens(), FAREWELL_S))
