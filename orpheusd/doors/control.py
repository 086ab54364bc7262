"""The control door: JSON-RPC over a Unix socket, served to whoever the kernel says may have it.

It reads frames, checks rights and parameters by the operations table, and hands each call to the service. It
knows nothing of what an operation does. A connection that does not read its answers is not listened to until
it does; what a stream would have told it meanwhile is dropped and counted.
"""

import asyncio
import grp
import logging
import os
import pwd
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, cast

import orjson

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
    """One client. Invariant: `_calls` are those that have not been answered."""

    def __init__(self, door: "ControlDoor", source: str, rights: Access | None) -> None:
        self.source = source
        self.peer: Peer | None = None
        self._door = door
        self._rights = rights
        self._buffer = LineBuffer(FRAME_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._calls: set[Call] = set()
        self._full = False
        self.silent = False
        self._last_acts: list[Callable[[], None]] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT_BYTES)
        self.peer = peer_of(transport.get_extra_info("socket"))
        if self._rights is None:
            self._rights = self._door.rights_of(self.peer)
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
        for line in lines:
            if self._transport is None or self._transport.is_closing():
                return
            if line.strip():
                self._serve(line)

    def eof_received(self) -> bool:
        """A client that has said all it wants to say may still wait for its answers."""
        self.silent = True
        self._abandon(self._calls)
        return bool(self._calls)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost = True
        self._door.dismiss(self)
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

    def pause_writing(self) -> None:
        self._full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._transport is not None:
            self._transport.resume_reading()

    def write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame + b"\n")

    def write_event(self, frame: bytes) -> None:
        """An event may be dropped where an answer may not."""
        if self._full:
            self._door.dropped_events += 1
        else:
            self.write(frame)

    def done(self, call: Call) -> None:
        self._calls.discard(call)
        if self.silent and not self._calls:
            # after the answer, which is written in this turn of the loop
            asyncio.get_running_loop().call_soon(self.close)

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
        except Exception:
            log.exception("%s failed", operation.name)
            call.refuse(OrpheusError("internal", f"{operation.name} failed inside the daemon; its log says more"))

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
    """The listening socket and its connections. Invariant: at most CLIENTS_LIMIT of them."""

    def __init__(self, service: Service, admin_group: str) -> None:
        self.admin_group = admin_group
        self.dropped_events = 0
        self.methods: dict[str, Callable[[Call, dict[str, Any]], Any]] = {
            name: getattr(service, name.replace(".", "_")) for name in BY_NAME
        }
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def open(self, path: Path) -> None:
        """Listen on `path`, replacing a socket that nobody serves. The caller holds the state directory's lock.

        Never connectable with a wrong mode: bound under a temporary name, and renamed once it is right.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        if len(os.fsencode(temporary)) > SUN_PATH_BYTES:
            raise OrpheusError("invalid-request", f"the control socket's path is too long for the kernel: {path} (at "
                                                  f"most {SUN_PATH_BYTES - 8} bytes); choose a shorter runtime_dir")
        if path.exists() and not path.is_socket():
            raise OrpheusError("conflict", f"{path} exists and is not a socket; move it away")
        temporary.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(
                lambda: Connection(self, "ctl", None), str(temporary), backlog=512, start_serving=False)
        finally:
            os.umask(umask)
        gid = _gid_of(self.admin_group)
        if gid is not None and os.geteuid() == 0:
            os.chown(temporary, -1, gid)
            temporary.chmod(0o660)
        await self._server.start_serving()
        temporary.rename(path)

    async def adopt(self, sock: Any, source: str, rights: Access) -> None:
        """Serve an already connected socket, such as a front door's, with exactly `rights`."""
        await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(self, source, rights), sock=sock)

    def rights_of(self, peer: Peer) -> Access | None:
        """Root, the daemon's own user and the admin group may do everything; nobody else anything."""
        if peer.uid in (0, os.getuid()):
            return Access.ADMIN
        gid = _gid_of(self.admin_group)
        return Access.ADMIN if gid is not None and gid in _groups_of(peer) else None

    def admit(self, connection: Connection) -> bool:
        if len(self._connections) >= CLIENTS_LIMIT:
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def spawn(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        """Carry out an operation that takes time; it goes on if its caller leaves."""
        task = asyncio.get_running_loop().create_task(self._carry_out(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()

    async def close(self, timeout_s: float) -> None:
        """Let operations finish for `timeout_s`, then close every connection."""
        self.stop_accepting()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
        for connection in list(self._connections):
            connection.close()

    async def _carry_out(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        try:
            result = await work
            if result is not None:
                call.answer(result)
        except OrpheusError as error:
            call.refuse(error)
        except asyncio.CancelledError:
            call.refuse(OrpheusError("draining", "the daemon is stopping"))
        except Exception:
            log.exception("%s failed", call.operation.name)
            call.refuse(OrpheusError("internal", f"{call.operation.name} failed inside the daemon; its log says more"))


#: sun_path of unix(7) is 108 bytes with its final NUL.
SUN_PATH_BYTES = 107


def _gid_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _groups_of(peer: Peer) -> set[int]:
    """The peer's groups. SO_PEERCRED has only the first; the others are those of its user."""
    try:
        return {peer.gid, *os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid)}
    except KeyError:
        return {peer.gid}
