"""The control door: JSON-RPC over a Unix socket, served to whoever the kernel says may have it.

It reads frames, checks rights and parameters by the operations table, and hands each call to the service. It
knows nothing of what an operation does. A connection that does not read its answers is not listened to until
it does; what a stream would have told it meanwhile is dropped and counted.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson

from orpheusd.doors.place import listen
from orpheusd.doors.rights import gid_of, rights_of
from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, Access, Operation, check_params
from orpheusd.process.pidfds import Peer, peer_of
from orpheusd.service import Service
from orpheusd.wire.control import (
    FRAME_LIMIT_BYTES,
    GONE,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SERVER_ERROR,
    MalformedRequest,
    Request,
    event,
    read_request,
    refusal,
)  # fmt: skip
from orpheusd.wire.frames import FrameTooLong, LineBuffer

log = logging.getLogger(__name__)

#: Connections at a time; a client that needs more should use one connection for many requests.
CLIENTS_LIMIT = 512
#: Requests in flight on one connection.
IN_FLIGHT_LIMIT = 4096
#: Bytes of answers that may wait for a client before it is not listened to any more.
WRITE_LIMIT_BYTES = 1024 * 1024
#: Bytes of answers after which a client that does not read is cut off: 32 results of the greatest size.
UNREAD_LIMIT_BYTES = 256 * 1024 * 1024
#: Frames of one client that are served before others get their turn; a run costs some 50 microseconds.
TURN_FRAMES = 64
#: The least that operations get to undo what they did, and clients to read the answers they have.
LAST_S = 0.2

_RANK = {Access.READ: 0, Access.RUN: 1, Access.ADMIN: 2}


class Call:
    """One request of a connection, until it is answered. Invariant: answered at most once."""

    __slots__ = ("_connection", "_gone", "id", "operation")

    def __init__(self, connection: "Connection", id: str | int | None, operation: Operation) -> None:
        self._connection = connection
        self._gone: Callable[[], None] | None = None
        self.id = id
        self.operation = operation

    @property
    def source(self) -> str:
        """Which door the caller came through: `ctl` or `http`."""
        return self._connection.source

    @property
    def caller(self) -> str:
        """Who asks, as the run log has it."""
        peer = self._connection.peer
        return "" if peer is None or self.source == "http" else f"uid {peer.uid}, pid {peer.pid}"

    def answer(self, result: Any) -> None:
        """Answer with `result`, which may hold orjson fragments."""
        connection = self._connection
        connection.done(self)
        if self.id is not None:
            connection.write(orjson.dumps({"jsonrpc": "2.0", "id": self.id, "result": result}))

    def refuse(self, error: OrpheusError) -> None:
        self._connection.done(self)
        if self.id is not None:
            number = INVALID_PARAMS if error.code == "invalid-request" else SERVER_ERROR
            self._connection.write(orjson.dumps(refusal(self.id, error, number)))

    def event(self, params: dict[str, Any]) -> None:
        """Send a notification of this call's stream."""
        if self.id is not None:
            self._connection.write_event(orjson.dumps(event(self.id, self.operation.name, params)))

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the caller leaves before the answer, or has left already."""
        self._gone = callback
        if self._connection.lost or self._connection.silent:
            self._connection.done(self)
            callback()

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the caller's connection ends, whatever has become of this call."""
        self._connection.at_end(callback)

    @property
    def watches_caller(self) -> bool:
        """Whether it is over when its caller leaves."""
        return self._gone is not None

    def abandoned(self) -> None:
        if self._gone is not None:
            self._gone()


class Connection(asyncio.Protocol):
    """One client. Invariant: `_calls` are those that have not been answered; while frames wait in `_backlog`, or
    answers beyond WRITE_LIMIT_BYTES, nothing more is read.
    """

    def __init__(self, door: "ControlDoor", source: str, rights: Access | None) -> None:
        self.source = source
        self.peer: Peer | None = None
        self._door = door
        self._rights = rights
        self._buffer = LineBuffer(FRAME_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._calls: set[Call] = set()
        self._backlog: deque[bytes] = deque()
        self._full = False
        self._is_paused = False
        self.silent = False
        self.idle_since = time.monotonic()
        self._last_acts: list[Callable[[], None]] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT_BYTES)
        try:
            self.peer = peer_of(transport.get_extra_info("socket"))
        except OSError:
            # out of files: whoever it is, nobody could be told
            self._transport.abort()
            return
        if self._rights is None:
            self._rights = rights_of(self.peer, self._door.admin_group)
        if self._rights is None:
            self._refuse(None, OrpheusError(
                "permission-denied", f"uid {self.peer.uid} may not use this socket; root, the daemon's own user and "
                                     f"the group {self._door.admin_group} may"))
            self._transport.close()
        elif self.source != "http" and not self._door.admit(self):
            self._refuse(None, OrpheusError("overloaded", f"{CLIENTS_LIMIT} clients are connected already"))
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            lines = self._buffer.feed(data)
        except FrameTooLong as error:
            self._refuse(None, OrpheusError("too-large", f"{error}; send bundles in pieces"), INVALID_REQUEST)
            if self._transport is not None:
                self._transport.close()
            return
        self.idle_since = time.monotonic()
        self._backlog.extend(lines)
        if len(self._backlog) == len(lines):
            self._serve_turn()

    def eof_received(self) -> bool:
        """A client that has said all it wants to say may still wait for its answers."""
        self.silent = True
        self._abandon(self._calls)
        return not self.idle

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost = True
        self._door.dismiss(self)
        self._backlog.clear()
        calls, self._calls = self._calls, set()
        for call in calls:
            call.abandoned()
        for act in self._last_acts:
            act()

    def at_end(self, callback: Callable[[], None]) -> None:
        if self.lost:
            callback()
        else:
            self._last_acts.append(callback)

    @property
    def idle(self) -> bool:
        """Whether nothing it asked for is left to be done."""
        return not self._calls and not self._backlog

    def pause_writing(self) -> None:
        self._full = True
        self._pause()

    def resume_writing(self) -> None:
        self._full = False
        self._serve_turn()

    def write(self, frame: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNREAD_LIMIT_BYTES:
            log.warning("a client that does not read its answers is cut off (%s)", self.peer)
            transport.abort()
        else:
            transport.write(frame + b"\n")

    def write_event(self, frame: bytes) -> None:
        """An event may be dropped where an answer may not."""
        if self._full:
            self._door.dropped_events += 1
        else:
            self.write(frame)

    def done(self, call: Call) -> None:
        self._calls.discard(call)
        self.idle_since = time.monotonic()
        if self.silent and self.idle:
            # after the answer, which is written in this turn of the loop
            asyncio.get_running_loop().call_soon(self.close)

    def _serve_turn(self) -> None:
        """Serve what has arrived; when that is more than a turn's share, the rest after everybody else had a turn."""
        for _ in range(min(len(self._backlog), TURN_FRAMES)):
            if self._full or self._transport is None or self._transport.is_closing():
                return
            line = self._backlog.popleft()
            if line.strip():
                self._serve(line)
        if self._backlog:
            self._pause()
            asyncio.get_running_loop().call_soon(self._serve_turn)
        elif self.silent:
            if self.idle:
                self.close()
        elif self._is_paused and not self._full and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _serve(self, line: bytes) -> None:
        try:
            request = read_request(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            self._refuse(None, OrpheusError("invalid-request", f"the frame is not JSON: {error}"), PARSE_ERROR)
            return
        except MalformedRequest as error:
            self._refuse(error.id, OrpheusError("invalid-request", str(error)), error.number)
            return
        if request.method == GONE:
            self._abandon(call for call in self._calls if call.id == request.params.get("id"))
            return
        operation = BY_NAME.get(request.method)
        if operation is None:
            self._refuse(request.id, OrpheusError("invalid-request", f"there is no operation {request.method[:60]!r}"),
                         METHOD_NOT_FOUND)
            return
        call = Call(self, request.id, operation)
        try:
            self._begin(call, request)
        except OrpheusError as error:
            call.refuse(error)
        except Exception as error:
            call.refuse(_fault(operation, error))

    def _abandon(self, calls: Iterable[Call]) -> None:
        """The callers of these have left: those that want to know are told, and answered no more."""
        for call in [call for call in calls if call.watches_caller]:
            self._calls.discard(call)
            call.abandoned()

    def _begin(self, call: Call, request: Request) -> None:
        operation = call.operation
        if self._rights is None or _RANK[operation.access] > _RANK[self._rights]:
            raise OrpheusError("permission-denied", f"{operation.name} needs {operation.access.value} rights, and "
                                                    "this connection does not have them")
        if len(self._calls) >= IN_FLIGHT_LIMIT:
            raise OrpheusError("overloaded", f"{IN_FLIGHT_LIMIT} requests of this connection are going on already")
        params = check_params(operation, request.params)
        self._calls.add(call)
        result = self._door.methods[operation.name](call, params)
        if asyncio.iscoroutine(result):
            self._door.spawn(call, result)
        elif result is not None:
            call.answer(result)

    def _refuse(self, id: str | int | None, error: OrpheusError, number: int = SERVER_ERROR) -> None:
        self.write(orjson.dumps(refusal(id, error, number)))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ControlDoor:
    """The listening socket and its connections.

    Invariant: at most CLIENTS_LIMIT of them. When there would be more, the one that has been idle longest goes.
    """

    def __init__(self, service: Service, admin_group: str) -> None:
        self.admin_group = admin_group
        self.dropped_events = 0
        self.methods: dict[str, Callable[[Call, dict[str, Any]], Any]] = {
            name: getattr(service, name.replace(".", "_")) for name in BY_NAME
        }
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def open(self, path: Path, given: Any) -> None:
        """Listen on `path` or on `given`. The caller holds the directory's lock, and has asked `check_place`."""
        gid = gid_of(self.admin_group) if os.geteuid() == 0 else None
        self._server = await listen(path, lambda: Connection(self, "ctl", None), gid, given)

    async def adopt(self, sock: Any, source: str, rights: Access) -> None:
        """Serve an already connected socket, such as a front door's, with exactly `rights`."""
        await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(self, source, rights), sock=sock)

    def admit(self, connection: Connection) -> bool:
        if len(self._connections) >= CLIENTS_LIMIT:
            idle = [one for one in self._connections if one.idle]
            if not idle:
                return False
            longest = min(idle, key=lambda one: one.idle_since)
            longest.close()
            self.dismiss(longest)
        self._connections.add(connection)
        self._empty.clear()
        return True

    def dismiss(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def spawn(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        """Carry out an operation that takes time; it goes on if its caller leaves."""
        task = asyncio.get_running_loop().create_task(self._carry_out(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()

    async def close(self, timeout_s: float) -> None:
        """Let operations finish, and clients read their answers, for `timeout_s`; then let go of both."""
        self.stop_accepting()
        by = asyncio.get_running_loop().time() + timeout_s
        late = (await asyncio.wait(self._tasks, timeout=timeout_s))[1] if self._tasks else set()
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=LAST_S)
        for connection in list(self._connections):
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(by - asyncio.get_running_loop().time(), LAST_S)):
                await self._empty.wait()

    async def _carry_out(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        try:
            result = await work
            if result is not None:
                call.answer(result)
        except OrpheusError as error:
            call.refuse(error)
        except asyncio.CancelledError:
            call.refuse(OrpheusError("draining", "the daemon is stopping"))
        except Exception as error:
            call.refuse(_fault(call.operation, error))


def _fault(operation: Operation, error: Exception) -> OrpheusError:
    """What nobody foresaw goes into the log; the caller is told what the system said, if it was the system."""
    log.error("%s failed", operation.name, exc_info=error)
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return OrpheusError("internal", f"{operation.name} failed inside the daemon{reason}; its log says more")
