"""A channel: one connection between the daemon and a template or a worker.

It turns bytes into messages and messages into bytes, and holds the process at the other end by a pidfd. What more
comes than is heard at once waits for its turn (`orpheusd.process.shares`), and nothing is read meanwhile. Whom it
belongs to is the business of `orpheusd.process.processes`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import orjson

from orpheusd.process.allowance import Excess
from orpheusd.process.pidfds import PidFd
from orpheusd.process.reading import Reading
from orpheusd.process.room import LARGE_BYTES, Room
from orpheusd.process.shares import HEAVY_S, TURN_MESSAGES, Shares
from orpheusd.wire.worker import Message, ProtocolViolation, Role, WorkerLink

#: A process that dials home says hello at once; one that has not by now never will.
HELLO_TIMEOUT_S = 5.0


class Listener(Protocol):
    """Who is told what happens on channels, and where large messages wait."""

    room: Room


    def heard(self, channel: "Channel", message: Message) -> None:
        """Raises Excess when nothing more that comes from there shall be believed."""

    def violated(self, channel: "Channel", detail: str) -> None: ...

    def closed(self, channel: "Channel") -> None: ...


class Channel(asyncio.Protocol):
    """Invariant: `owner` is "" until a hello was believed; after `closed` was told nothing more is heard. While it
    waits for a turn nothing is read.

    `undelivered` are the runs that the other end has certainly not read. When a process dies with bytes unread,
    the kernel resets the connection instead of ending it (unix(7) sockets; unix_release_sock), and then the last
    message was among them. `last_run` is the run of that message, if it was one and nothing has been said of it since.
    """

    def __init__(self, listener: Listener, home: str, shares: Shares, on_met: Callable[[bool], None]) -> None:
        """`on_met` is told, once, whether the hello was believed."""
        self.home = home
        self.owner = ""
        self.process: PidFd | None = None
        self.undelivered: set[str] = set()
        self.last_run: str | None = None
        self._listener = listener
        self._shares = shares
        self._on_met = on_met
        self._link = WorkerLink(Role.SUPERVISOR, orjson.loads, orjson.dumps)
        self._transport: asyncio.Transport | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._broken = False
        self._reading: Reading | None = None
        self._waits = False
        self._is_large = False
        self._flushed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._reading = Reading(self._transport)
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._no_hello)

    def data_received(self, data: bytes) -> None:
        if not self._broken:
            self._take_turn(data)

    def resume_writing(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        while self.owner and self._link.behind and not self._broken:
            self._hear(b"")
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
        if self._reading is not None:
            self._listener.room.read_on(self._reading)

    def _all_arrived(self) -> None:
        self._is_large = False
        if self._reading is not None:
            self._listener.room.arrived(self._reading)

    def has_read(self, run_id: str) -> None:
        """The other end has said something of the run."""
        if self.last_run == run_id:
            self.last_run = None

    def met(self) -> None:
        """The hello was believed, or never will be."""
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
            self._on_met(bool(self.owner))

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

    def _take_turn(self, data: bytes) -> None:
        started = time.perf_counter()
        self._hear(data)
        took_s = time.perf_counter() - started
        if (took_s > HEAVY_S or self._link.behind) and not (self._waits or self._broken or self.closing):
            self._waits = True
            if self._reading is not None:
                self._reading.hold(self._shares)
            self._shares.wait(self._go_on, took_s)

    def _hear(self, data: bytes) -> None:
        """Hear a turn's worth of what has come."""
        try:
            messages = self._link.receive(data, TURN_MESSAGES)
        except ProtocolViolation as error:
            self.violated(str(error))
            return
        self._measure()
        try:
            for message in messages:
                self._listener.heard(self, message)
                if self._broken:
                    return
        except Excess as error:
            self.violated(str(error))

    def _measure(self) -> None:
        """A message of which much has come, and not its end, may have to wait for its rest."""
        if self._link.pending_bytes > LARGE_BYTES:
            self._is_large = True
            if self._reading is not None:
                self._listener.room.arriving(self._reading)
        elif self._is_large:
            self._all_arrived()

    def _go_on(self) -> None:
        """Its turn has come again."""
        self._waits = False
        if self._link.behind and not (self._broken or self.closing):
            self._take_turn(b"")
        if not self._waits and self._reading is not None:
            self._reading.go_on(self._shares)

    def _no_hello(self) -> None:
        if not self.owner:
            self.close()
