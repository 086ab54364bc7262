"""A channel: one connection between the daemon and a template or a worker.

It turns bytes into messages and messages into bytes, and holds the process at the other end by a pidfd from
the moment it connects. Whom it belongs to is the business of `orpheusd.process.processes`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import orjson

from orpheusd.process.pidfds import PidFd
from orpheusd.process.room import LARGE_BYTES, Room
from orpheusd.wire.worker import Message, ProtocolViolation, Role, WorkerLink

#: A process that dials home says hello at once; one that has not by now never will.
HELLO_TIMEOUT_S = 5.0


class Listener(Protocol):
    """Who is told what happens on channels, and may turn one away before it costs anything, or let it wait."""

    room: Room

    def welcome(self, channel: "Channel") -> bool: ...

    def heard(self, channel: "Channel", message: Message) -> None: ...

    def violated(self, channel: "Channel", detail: str) -> None: ...

    def closed(self, channel: "Channel") -> None: ...


class Channel(asyncio.Protocol):
    """Invariant: `owner` is "" until a hello was believed; after `closed` was told nothing more is heard.

    `undelivered` are the runs that the other end has certainly not read. When a process dies with bytes unread,
    the kernel resets the connection instead of ending it (unix(7) sockets; unix_release_sock), and then the last
    message was among them. `last_run` is the run of that message, if it was one and nothing has been said of it since.
    """

    def __init__(self, listener: Listener, home: str) -> None:
        self.home = home
        self.owner = ""
        self.process: PidFd | None = None
        self.undelivered: set[str] = set()
        self.last_run: str | None = None
        self._listener = listener
        self._link = WorkerLink(Role.SUPERVISOR, orjson.loads, orjson.dumps)
        self._transport: asyncio.Transport | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._broken = False
        self._is_large = False
        self._flushed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._listener.welcome(self):
            self._transport.abort()
            return
        try:
            self.process = PidFd.of_peer(transport.get_extra_info("socket"))
        except OSError:
            self._transport.abort()
            return
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._no_hello)

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            messages = self._link.receive(data)
        except ProtocolViolation as error:
            self.violated(str(error))
            return
        if self._link.pending_bytes > LARGE_BYTES:
            self._is_large = True
            if self._transport is not None:
                self._listener.room.arriving(self._transport)
        elif self._is_large:
            self._all_arrived()
        for message in messages:
            self._listener.heard(self, message)

    def resume_writing(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self.met()
        self._all_arrived()
        if self.last_run is not None and isinstance(exc, ConnectionResetError | BrokenPipeError):
            self.undelivered.add(self.last_run)
        self._listener.closed(self)

    def say(self, type: str, fields: dict[str, Any], payload: bytes = b"") -> None:
        """Send a message. On a channel that is closed it is not delivered, which the end of the channel tells."""
        transport = self._transport
        run_id = fields["run_id"] if type == "run" else None
        if transport is not None and not transport.is_closing():
            transport.write(self._link.send(type, fields, payload))
            self.last_run = run_id
        elif run_id is not None:
            self.undelivered.add(run_id)

    async def flush(self) -> None:
        """Returns when the other end's socket has all that was said, or is no more."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.set_write_buffer_limits(high=0)
            if transport.get_write_buffer_size():
                self._flushed = asyncio.get_running_loop().create_future()
                await self._flushed

    def read_on(self) -> None:
        """The other end is dead: what it said last is read without a wait."""
        if self._transport is not None:
            self._listener.room.read_on(self._transport)

    def _all_arrived(self) -> None:
        self._is_large = False
        if self._transport is not None:
            self._listener.room.arrived(self._transport)

    def has_read(self, run_id: str) -> None:
        """The other end has said something of the run."""
        if self.last_run == run_id:
            self.last_run = None

    def met(self) -> None:
        """The hello was believed, or never will be."""
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    def violated(self, detail: str) -> None:
        """Believe nothing more that comes from here."""
        self._broken = True
        self._listener.violated(self, detail)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _no_hello(self) -> None:
        if not self.owner:
            self.close()


async def listen(path: str, listener: Listener, home: str) -> asyncio.AbstractServer:
    """A server on the Unix socket `path` whose connections are channels of template `home`."""
    factory: Callable[[], Channel] = lambda: Channel(listener, home)  # noqa: E731
    return await asyncio.get_running_loop().create_unix_server(factory, path)
