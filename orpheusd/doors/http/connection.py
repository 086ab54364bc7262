"""One client's connection: bytes between its socket and Hypercorn's HTTP/1.1, each wait with a deadline.

Takes the place of Hypercorn's own TCP server, which waits for ever for a client that does not read and resets one
that is still sending when it is refused. It knows nothing of what requests ask for.
"""

import asyncio
import time
from enum import Enum
from typing import Any

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from orpheusd.doors.http.inbox import Tasks
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.protocol import DoorConfig, PlainHTTP

READ_BYTES = 64 * 1024
#: A long answer goes out in pieces of this size, each with its own deadline.
PIECE_BYTES = 256 * 1024
#: What a client may leave unread before the answer waits for it.
HIGH_WATER_BYTES = 64 * 1024


class Phase(Enum):
    """What a connection waits for."""

    HEADERS = "headers"  # the rest of a request's headers
    ANSWER = "answer"  # our own answer, or the request's body
    IDLE = "idle"  # the first byte of the next request
    CLOSING = "closing"  # the client, to close its side; what it still sends is dropped


class Connection:
    """Invariant: in each phase but ANSWER a timer runs that ends it; a wait for the client to read has a deadline."""

    def __init__(self, app: Any, config: DoorConfig, context: WorkerContext, limits: Limits,
                 reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.phase = Phase.HEADERS
        self.idle_since = 0.0
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limits.header_deadline_s, self.close)
        self._protocol: PlainHTTP | None = None

    async def run(self) -> None:
        """Returns when the connection is closed and every request on it was answered."""
        try:
            socket = self._writer.get_extra_info("socket")
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with Tasks(self._loop) as tasks:
                self._protocol = PlainHTTP(self._app, self._config, self._context, tasks, ConnectionState({}), False,
                                           client, server, self._send)
                await self._read(self._protocol)
            await self._flush()
        except OSError:
            pass  # the client is gone
        finally:
            self._timer.cancel()
            self._transport.abort()

    def close(self) -> None:
        """Hang up: no answer is on its way that a reset could destroy, at most the end of one that is read slowly."""
        if self.phase is not Phase.CLOSING:
            self._enter(Phase.CLOSING, self._limits.send_deadline_s, self._transport.abort)
            self._transport.close()

    def _linger(self) -> None:
        """Say that no more is coming, and wait for the client to close: it may still be sending."""
        if self.phase is not Phase.CLOSING:
            self._enter(Phase.CLOSING, self._limits.linger_s, self._lingered)
            if not self._transport.is_closing():
                self._writer.write_eof()

    def _lingered(self) -> None:
        if self._transport.get_write_buffer_size() == 0:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(self._limits.send_deadline_s, self._transport.abort)

    async def _read(self, protocol: PlainHTTP) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                if self.phase is Phase.CLOSING:
                    continue
                await protocol.handle(RawData(data))
                if self.phase is Phase.IDLE:
                    self._enter(Phase.HEADERS, self._limits.header_deadline_s, self.close)
            if self.phase is not Phase.CLOSING:
                await protocol.handle(RawData(b""))
        except OSError:
            pass
        await protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            self._linger()
        elif isinstance(event, Updated):
            if self.phase is Phase.CLOSING:
                return
            if event.idle:
                self.idle_since = time.monotonic()  # the loop's own clock has ticks of 1 ms
                self._enter(Phase.IDLE, self._limits.keep_alive_s, self.close)
            else:
                self.phase = Phase.ANSWER
                self._timer.cancel()

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self._transport.is_closing():
                return
            self._writer.write(data if len(data) <= PIECE_BYTES else data[start:start + PIECE_BYTES])
            if self._transport.get_write_buffer_size() > HIGH_WATER_BYTES:
                await self._drain()

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._limits.send_deadline_s):
                await self._writer.drain()
        except (OSError, TimeoutError):
            self._transport.abort()  # the read side sees it and tells the request

    async def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
        async with asyncio.timeout(self._limits.send_deadline_s):
            await self._writer.wait_closed()

    def _enter(self, phase: Phase, timeout_s: float, late: Any) -> None:
        self.phase = phase
        self._timer.cancel()
        self._timer = self._loop.call_later(timeout_s, late)
