"""One client's connection: bytes between its socket and HTTP/1.1, each wait with a deadline.

Takes the place of Hypercorn's own TCP server, which waits for ever for a client that does not read and resets one
that is still sending when it is refused. Plain requests take the short way of plain.py, all others go through
Hypercorn's h11. It knows nothing of what requests ask for.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from orpheusd.doors.http.inbox import Tasks
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.plain import Address, Exchange, PlainRequest, read_plain
from orpheusd.doors.http.protocol import DoorConfig, PlainHTTP
from orpheusd.doors.http.unread import Unread
from orpheusd.doors.http.waiting import Phase, Waiting

#: What was received is handed on in pieces of at most this size.
READ_BYTES = 64 * 1024
#: What may wait to be handed on before the client is not listened to; one read of uvloop may come on top.
READ_AHEAD_BYTES = 2 * READ_BYTES
#: A long answer goes out in pieces of this size, each with its own deadline.
PIECE_BYTES = 256 * 1024
#: What a client may leave unread before the answer waits for it.
HIGH_WATER_BYTES = 64 * 1024
#: A timer that comes this early is not worth another one.
TIMER_SLACK_S = 0.002

#: The phases from which there is no way back: what a client still sends is dropped.
ENDING = (Phase.LINGER, Phase.CLOSING)


class Connection(asyncio.Protocol):
    """Invariant: in each phase but ANSWER and BODY a deadline ends it, and whoever reads a body has one of its own; a
    wait for the client to read has a deadline; what waits in `_received` is at most `READ_AHEAD_BYTES` and one read.
    """

    def __init__(
        self, app: Any, config: DoorConfig, context: WorkerContext, limits: Limits, unread: Unread,
        waiting: "Waiting[Connection]"
    ) -> None:  # fmt: skip
        self.phase = Phase.HEADERS
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._unread = unread
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._client: Address = None
        self._server: Address = None
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._is_paused = False
        self._ended = False
        self._arrival: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._deadline = 0.0  # 0: none
        self._late: Callable[[], None] = self.close
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def run(self) -> None:
        """Returns when the connection is closed and every request on it was answered."""
        try:
            self._enter(Phase.HEADERS, self._limits.header_deadline_s, self.close)
            socket = self._transport.get_extra_info("socket")
            self._client = parse_socket_addr(socket.family, socket.getpeername())
            self._server = parse_socket_addr(socket.family, socket.getsockname())
            async with Tasks(self._loop) as tasks:
                await self._read(PlainHTTP(self._app, self._config, self._context, tasks, ConnectionState({}), False,
                                           self._client, self._server, self._send))
            await self._flush()
        except OSError:
            pass  # the client is gone
        finally:
            self._change(Phase.CLOSING)
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()

    def close(self) -> None:
        """Hang up: no answer is on its way that a reset could destroy, at most the end of one that is read slowly."""
        if self.phase not in ENDING:
            self._hang_up(self._limits.send_deadline_s)

    def let_go(self) -> bool:
        """Make room for a newcomer, in a phase of `PATIENCE_S`. False when there is none yet: the client has just said
        something, and stays, or it has first to read the end of an answer. One that had a body to send is told to
        try again; if it sends at this moment it may see a reset instead.
        """
        if self._received and self.phase is not Phase.LINGER:
            self._waiting.change(self, self.phase, self.phase, time.monotonic())
            return False
        is_read = self._transport.get_write_buffer_size() == 0
        if self.phase is Phase.BODY and not self._transport.is_closing():
            self._transport.write(self._config.no_room())
        self._hang_up(self._limits.linger_s if is_read else self._limits.send_deadline_s)
        return is_read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        if len(data) <= READ_BYTES:
            self._received.append(data)
        else:
            self._received.extend(data[start:start + READ_BYTES] for start in range(0, len(data), READ_BYTES))
        self._received_bytes += len(data)
        if self._received_bytes > READ_AHEAD_BYTES:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True  # who only stops sending still gets the answer

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended = True
        self._lost.set()
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def _read(self, protocol: PlainHTTP) -> None:
        while data := await self._next():
            if self.phase in ENDING:
                continue
            if protocol.is_between and (request := read_plain(data)) is not None:
                await self._answer(request)
                continue
            if self.phase is Phase.BODY:
                self._change(Phase.ANSWER)  # while it takes what came, the wait is our own
            await protocol.handle(RawData(data))
            if self.phase is Phase.IDLE:
                self._enter(Phase.HEADERS, self._limits.header_deadline_s, self.close)
            elif self.phase is Phase.ANSWER and protocol.is_receiving:
                self._change(Phase.BODY)
        if self.phase not in ENDING and not self._lost.is_set():
            await protocol.handle(RawData(b""))
        await protocol.handle(Closed())

    async def _next(self) -> bytes:
        """The next piece of what the client sends; empty when no more will come."""
        while not self._received and not self._ended:
            self._arrival = self._loop.create_future()
            await self._arrival
        if not self._received or self._lost.is_set():
            return b""  # what somebody said who cannot hear the answer is not acted on
        data = self._received.popleft()
        self._received_bytes -= len(data)
        if self._is_paused and self._received_bytes <= READ_BYTES:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    async def _answer(self, request: PlainRequest) -> None:
        self._change(Phase.ANSWER)
        exchange = Exchange(request, self._config.response_lines())
        await self._app(request.scope(self._client, self._server), exchange.receive, exchange.send)
        answer, answered = deque(exchange.answer), bool(exchange.answer)
        exchange.answer = ()  # nobody but us holds it: what is sent is let go
        while answer:
            await self._write(answer.popleft())
        if not answered or exchange.hang_up or self._context.terminated.is_set():
            self._linger()
        else:
            self._idle()

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self.phase is Phase.BODY:
                self._change(Phase.ANSWER)  # answered before it was heard to the end
            await self._write(event.data, kept_bytes=len(event.data))
        elif isinstance(event, Closed):
            self._linger()
        elif isinstance(event, Updated):
            if event.idle:
                self._idle()
            elif self.phase not in ENDING:
                self._change(Phase.ANSWER)

    async def _write(self, data: bytes, kept_bytes: int = 0) -> None:
        """Returns when the kernel has most of it. `kept_bytes` are held by the caller until then, sent or not."""
        pieces = deque((data,) if len(data) <= PIECE_BYTES else
                       (data[start:start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)))
        left_bytes = len(data) + kept_bytes
        del data
        try:
            while pieces and not self._transport.is_closing():
                piece = pieces.popleft()
                self._transport.write(piece)
                if self._transport.get_write_buffer_size() > HIGH_WATER_BYTES:
                    self._unread.hold(self._cut_off, left_bytes)
                    await self._drain()
                left_bytes -= len(piece)
        finally:
            self._unread.hold(self._cut_off, 0)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._limits.send_deadline_s):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()  # the read side sees it and tells the request

    def _cut_off(self) -> None:
        self._transport.abort()

    async def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
        async with asyncio.timeout(self._limits.send_deadline_s):
            await self._lost.wait()

    def _idle(self) -> None:
        if self.phase not in ENDING:
            self._enter(Phase.IDLE, self._limits.keep_alive_s, self.close)

    def _linger(self) -> None:
        """Say that no more is coming, and wait for the client to close: it may still be sending."""
        if self.phase not in ENDING:
            self._enter(Phase.LINGER, self._limits.linger_s, self._lingered)
            if not self._transport.is_closing():
                self._transport.write_eof()

    def _lingered(self) -> None:
        if self._transport.get_write_buffer_size() == 0:
            self._transport.abort()
        else:
            self._enter(Phase.CLOSING, self._limits.send_deadline_s, self._transport.abort)

    def _hang_up(self, timeout_s: float) -> None:
        self._enter(Phase.CLOSING, timeout_s, self._transport.abort)
        self._transport.close()

    def _change(self, phase: Phase) -> None:
        """From here on there is no deadline."""
        self._waiting.change(self, self.phase, phase, time.monotonic())
        self.phase = phase
        self._deadline = 0.0

    def _enter(self, phase: Phase, timeout_s: float, late: Callable[[], None]) -> None:
        """A timer that runs already is left alone when it comes early enough: it starts itself again."""
        self._change(phase)
        self._late = late
        self._deadline = deadline = time.monotonic() + timeout_s
        if self._timer is None or deadline < self._timer_at:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_later(self._deadline - time.monotonic(), self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._deadline:
            return
        if self._deadline - time.monotonic() > TIMER_SLACK_S:
            self._start_timer()
        else:
            self._late()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
