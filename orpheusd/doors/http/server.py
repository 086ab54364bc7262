"""Accepts clients on the listening sockets, at most so many at a time, and lets them go when the door closes.

It knows nothing of HTTP; a connection does.
"""

import asyncio
import errno
import logging
import socket
import time
from typing import Any

from hypercorn.asyncio.worker_context import WorkerContext

from orpheusd.doors.http.complaints import Complaints
from orpheusd.doors.http.connection import Connection
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.protocol import DoorConfig
from orpheusd.doors.http.unread import Unread
from orpheusd.doors.http.waiting import Phase, Waiting
from orpheusd.doors.http.waits import Waits

#: When files or memory are short, accept is tried again after this long, or when a connection of ours ends.
SHORTAGE_S = 1.0
#: When the door is full, how soon it looks again who can be let go; at once when a connection ends.
FULL_S = 0.1
#: Of a full door's connections, the part whose waits are cut short at once: whoever does not close then is let go only
#: after a moment, and newcomers should not have that moment each.
CUT_PART = 0.01
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """Invariant: `_tasks` holds one task for each client that was accepted and is not gone, never more than
    `limits.connections`. When they are used up, one that waits for its client goes (waiting.py); without such a one
    those that wait for longest by their own wish are answered (waits.py), and go; new clients wait meanwhile in the
    kernel's queue, as they do before `start` and after `stop`. `_stuck`: nobody has left since it was full.
    """

    def __init__(self, app: Any, limits: Limits, waits: Waits, complaints: Complaints) -> None:
        self._app = app
        self._limits = limits
        self._waits = waits
        self._complaints = complaints
        self._unread = Unread(limits.answers_bytes)
        self._config = DoorConfig(limits)
        self._context = WorkerContext(None)
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._again: asyncio.TimerHandle | None = None
        self._stuck = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._waiting: Waiting[Connection] = Waiting()

    def start(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._accept()

    async def drain(self) -> None:
        """Accept no more, and return when no connection is left: the idle ones close, the others are answered once."""
        await self._close_idle(Phase.IDLE)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self, grace_s: float) -> None:
        """Returns when no connection is left: the idle ones close, the busy ones get `grace_s` to be answered."""
        await self._close_idle(Phase.IDLE, Phase.HEADERS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close_idle(self, *phases: Phase) -> None:
        self._pause()
        self._listeners = []
        await self._context.terminated.set()
        for connection in list(self._connections):
            if connection.phase in phases:
                connection.close()

    def _accept(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for listener in self._listeners:
            self._loop.add_reader(listener, self._arrived, listener)
        self._accepting = True

    def _accept_again(self) -> None:
        """Nobody has left while it was paused."""
        self._stuck = True
        self._accept()

    def _pause(self, timeout_s: float | None = None) -> None:
        """Accept nobody until a client leaves, or for `timeout_s`."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._accepting = False
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if timeout_s is not None:
            self._again = self._loop.call_later(timeout_s, self._accept_again)

    def _arrived(self, listener: socket.socket) -> None:
        if len(self._tasks) >= self._limits.connections:
            self._pause(FULL_S)
            self._loop.call_soon(self._make_room)  # when all that clients have sent by now was heard
            return
        try:
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in _SHORTAGE:
                self._complaints.say(f"cannot accept connections: {error}", logging.WARNING)
                self._pause(SHORTAGE_S)
            return  # taken by another door, or gone already
        task = self._loop.create_task(self._serve(client))
        self._tasks.add(task)
        task.add_done_callback(self._left)

    async def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        connection = Connection(self._app, self._config, self._context, self._limits, self._unread,
                                self._waiting)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except BaseException:
            client.close()
            raise
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _left(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._stuck = False
        if not self._accepting:
            self._accept()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._complaints.failed("a connection failed", error)

    def _make_room(self) -> None:
        now = time.monotonic()  # who begins to wait anew after it is not asked twice
        while self._listeners and (connection := self._waiting.longest(now)) is not None:
            if connection.let_go():
                return
        if self._stuck and not self._waiting.somebody():
            self._waits.cut_short(max(1, int(self._limits.connections * CUT_PART)))
