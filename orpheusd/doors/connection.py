"""One client of the control door: its frames, its calls, and what it may do.

It reads frames, checks rights and parameters by the operations table, and hands each call to the door's methods. A
connection that does not read its answers is not listened to until it does; what a stream would have told it meanwhile
is dropped and counted.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import orjson

from orpheusd.audit import Asker, digest_of
from orpheusd.doors.call import Call
from orpheusd.doors.rights import rights_of
from orpheusd.errors import OrpheusError
from orpheusd.handover import Client
from orpheusd.operations import BY_NAME, Access, Operation, check_params
from orpheusd.process.pidfds import Peer, exe_of, peer_of
from orpheusd.wire.control import (
    FRAME_LIMIT_BYTES,
    GONE,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SERVER_ERROR,
    MalformedRequest,
    Request,
    answer,
    order,
    read_request,
    refusal,
)  # fmt: skip
from orpheusd.wire.frames import FrameTooLong, LineBuffer

if TYPE_CHECKING:
    from orpheusd.doors.control import ControlDoor

log = logging.getLogger(__name__)

#: Requests in flight on one connection.
IN_FLIGHT_LIMIT = 4096
#: Bytes of answers that may wait for a client before it is not listened to any more.
WRITE_LIMIT_BYTES = 1024 * 1024
#: Bytes of answers after which a client that does not read is cut off: 32 results of the greatest size.
UNREAD_LIMIT_BYTES = 256 * 1024 * 1024
#: Frames of one client that are served before others get their turn; a run costs some 50 microseconds.
TURN_FRAMES = 64

#: The operation whose callers the next image answers.
RELOAD = "reload"

_RANK = {Access.READ: 0, Access.RUN: 1, Access.ADMIN: 2}


class Connection(asyncio.Protocol):
    """One client. Invariant: `_calls` are those that have not been answered; while frames wait in `_backlog`, or
    answers beyond WRITE_LIMIT_BYTES, nothing more is read. Once it is held nothing is begun, so that all it was asked
    is either in `_calls`, or to be handed over.
    """

    def __init__(
        self, door: "ControlDoor", source: str, rights: Access | None, handed: Client | None = None
    ) -> None:  # fmt: skip
        """`handed` is what an earlier image of this daemon has left to do for it."""
        self.source = source
        self.peer: Peer | None = None
        self.audit = door.audit
        self._door = door
        self._rights = rights
        self.asker = Asker(source, -1, 0, "")
        self._buffer = LineBuffer(FRAME_LIMIT_BYTES)
        self._transport: asyncio.Transport | None = None
        self._calls: set[Call] = set()
        self._backlog: deque[bytes] = deque()
        self._handed = handed
        self._held = False
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
        # now, for it need not be there any more when what it asks for is done
        self.asker = Asker(self.source, self.peer.uid, self.peer.pid, exe_of(self.peer))
        if self._rights is None:
            self._rights = rights_of(self.peer, self._door.admin_group)
        if self._rights is None:
            self.audit.note(self.asker, "connect", None, "", "permission-denied")
            self._refuse(None, OrpheusError(
                "permission-denied", f"uid {self.peer.uid} may not use this socket; root, the daemon's own user and "
                                     f"the group {self._door.admin_group} may"))
            self._transport.close()
            return
        try:
            self._door.admit(self)
        except OrpheusError as error:
            self._refuse(None, error)
            self._transport.close()
            return
        if self._handed is not None:
            for id in self._handed.asked:
                self.audit.note(self.asker, RELOAD, None, digest_of(BY_NAME[RELOAD], {}), "done")
                self.write(orjson.dumps(answer(id, self._door.reloaded)))
            self.data_received(self._handed.unread)
            self._handed = None

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
        if self._held:
            self._door.settle()
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

    def tell(self, name: str) -> None:
        """An order to a front door (`wire.control.order`): it waits in the socket of one that is not up yet."""
        self.write(orjson.dumps(order(name)))

    def done(self, call: Call) -> None:
        self._calls.discard(call)
        self.idle_since = time.monotonic()
        if self._held:
            self._door.settle()
        if self.silent and self.idle:
            # after the answer, which is written in this turn of the loop
            asyncio.get_running_loop().call_soon(self.close)

    def _serve_turn(self) -> None:
        """Serve what has arrived; when that is more than a turn's share, the rest after everybody else had a turn."""
        for _ in range(min(len(self._backlog), TURN_FRAMES)):
            if self._held or self._full or self._transport is None or self._transport.is_closing():
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

    # For the next image

    def hold(self) -> None:
        """Read nothing more, and begin nothing of what was read."""
        self._held = True
        self._pause()

    def release(self) -> None:
        """Go on reading and beginning; who asked for the next image is told that there will be none."""
        self._held = False
        for call in [call for call in self._calls if call.operation.name == RELOAD]:
            call.refuse(OrpheusError("draining", "the daemon was told to stop while it was reloading"))
        self._serve_turn()

    def answered(self) -> bool:
        """Whether every call that is this image's to answer has its answer."""
        return all(call.operation.name == RELOAD for call in self._calls)

    def give_up(self, error: OrpheusError) -> None:
        """Refuse what is not answered, and let go of answers as fast as they are read."""
        for call in [call for call in self._calls if call.operation.name != RELOAD]:
            call.refuse(error)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=0)

    @property
    def unread_bytes(self) -> int:
        """What waits to be taken by the client's socket."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def written(self) -> bool:
        """Whether the client's socket has all that was to be said, or is no more."""
        return not self.unread_bytes

    def hand_over(self) -> Client | None:
        """What is left to do for this client; None for one that is leaving or has not read its answers."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._rights is None or not self.written():
            return None
        unread = b"".join(line + b"\n" for line in self._backlog) + self._buffer.partial
        fd = transport.get_extra_info("socket").fileno()
        return Client(fd, unread, [call.id for call in self._calls if call.id is not None])

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
        call = Call(self, request.id, operation, request.params)
        try:
            self._begin(call, request)
        except OrpheusError as error:
            call.refuse(error)
        except Exception as error:  # nobody foresaw it: the daemon lives on for the other callers
            call.refuse(fault(operation, error))

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


def fault(operation: Operation, error: Exception) -> OrpheusError:
    """What nobody foresaw goes into the log; the caller is told what the system said, if it was the system."""
    log.error("%s failed", operation.name, exc_info=error)
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return OrpheusError("internal", f"{operation.name} failed inside the daemon{reason}; its log says more")
