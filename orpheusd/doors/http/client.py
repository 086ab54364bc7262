"""The door's end of the control protocol: many calls and streams in flight on one connection to the daemon.

Results and the data of events are handed on as the bytes the daemon wrote: decoding and encoding them again would
cost time and would turn integers beyond 64 bits into floats. This file knows nothing of HTTP.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from orpheusd.doors.http.streams import Event, Room, Stream
from orpheusd.errors import OrpheusError
from orpheusd.wire.control import FRAME_LIMIT_BYTES, gone, read_error, request
from orpheusd.wire.frames import FrameTooLong, LineBuffer

#: Frames are handed out in slices of this size, and the loop turns between two, so that whoever reads a stream can
#: take its events before more are added: its queue then only fills when its client is slow.
SLICE_BYTES = 64 * 1024
#: What the daemon has not read yet; beyond it the daemon is stuck, and more requests would only fill our memory.
UNREAD_LIMIT_BYTES = 64 * 1024 * 1024

#: Frames as `wire.control` and orjson write them; one that is written otherwise is decoded instead.
_ANSWER = re.compile(rb'\{"jsonrpc":"2\.0","id":(\d{1,18}),"result":')
_EVENT = re.compile(rb'\{"jsonrpc":"2\.0","method":"[a-z.]+","params":\{"id":(\d{1,18}),"event":"([a-z]+)","data":')
_EVENT_END = re.compile(rb'(?:,"seq":\d{1,18})?\}\}\Z')
_EVENT_END_BYTES = 32


class ControlClient(asyncio.Protocol):
    """One connection to the daemon.

    Invariant: every call and stream in `_waiting` ends with its answer or with the connection, and leaves no entry
    behind. An answer that nobody waits for any more is dropped; the daemon is told of a caller who has left, and not
    of a reader who was too slow, whose run goes on. `on_lost` is called once, after all of them ended. An order of the
    daemon's is heard after all that it has said before.
    """

    def __init__(self, room: Room, on_lost: Callable[[], None], orders: Mapping[str, Callable[[], None]]) -> None:
        self._room = room
        self._on_lost = on_lost
        self._orders = orders
        self._frames = LineBuffer(FRAME_LIMIT_BYTES)
        self._backlog: deque[bytes] = deque()
        self._waiting: dict[int, asyncio.Future[bytes] | Stream] = {}
        self._last_id = 0
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._loop = asyncio.get_running_loop()

    async def call(self, method: str, params: dict[str, Any]) -> bytes:
        """The result, as JSON text. Raises OrpheusError. Cancelled, it tells the daemon that the caller has left."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        id = self._send(method, params, future)
        try:
            return await future
        finally:
            if self._waiting.pop(id, None) is not None:
                self._write_soon(_frame(gone(id)))

    def stream(self, method: str, params: dict[str, Any]) -> Stream:
        """The events and the answer of one request. Raises OrpheusError when it cannot be sent."""
        stream = Stream(self._room)
        id = self._send(method, params, stream)
        stream.on_end = lambda: self._forget(id)
        return stream

    def leave(self, stream: Stream) -> None:
        """Tell the daemon that the reader of `stream` has left before its answer."""
        for id in [id for id, waiting in self._waiting.items() if waiting is stream]:
            self._write_soon(_frame(gone(id)))

    def end_streams(self, error: OrpheusError) -> None:
        """End every stream with `error`; calls go on."""
        for waiting in list(self._waiting.values()):
            if isinstance(waiting, Stream):
                waiting.end(error)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        try:
            self._backlog.extend(self._frames.feed(data))
        except FrameTooLong:
            self.close()
            return
        self._hand_out()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        while self._backlog:
            self._dispatch(self._backlog.popleft())
        for waiting in list(self._waiting.values()):
            self._end(waiting, _unreachable("the daemon closed the control connection"))
        self._waiting.clear()
        self._on_lost()

    def _send(self, method: str, params: dict[str, Any], waiting: asyncio.Future[bytes] | Stream) -> int:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise _unreachable("the control connection is closed")
        if transport.get_write_buffer_size() + self._unsent_bytes > UNREAD_LIMIT_BYTES:
            raise OrpheusError("overloaded", "the daemon does not keep up with its requests; try again later")
        self._last_id = id = self._last_id + 1
        try:
            frame = _frame(request(id, method, params))
        except orjson.JSONEncodeError as error:
            raise OrpheusError("invalid-request", f"the input cannot be passed on: {error}") from None
        if len(frame) > FRAME_LIMIT_BYTES:
            # Small JSON can be long when written out: 1e15 becomes 1000000000000000.0.
            raise OrpheusError("too-large", f"the input is longer than {FRAME_LIMIT_BYTES} bytes when written out")
        self._waiting[id] = waiting
        self._write_soon(frame)
        return id

    def _write_soon(self, frame: bytes) -> None:
        # What this turn of the loop asks goes out together: each write of its own would wake the daemon once more.
        if not self._unsent:
            self._loop.call_soon(self._write_unsent)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)

    def _write_unsent(self) -> None:
        frames, self._unsent = self._unsent, []
        self._unsent_bytes = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _hand_out(self) -> None:
        slice_bytes = 0
        while self._backlog:
            slice_bytes += len(self._backlog[0])
            if slice_bytes > SLICE_BYTES and slice_bytes > len(self._backlog[0]):
                if self._transport is not None:
                    self._is_paused = True
                    self._transport.pause_reading()
                self._loop.call_soon(self._hand_out)
                return
            self._dispatch(self._backlog.popleft())
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def _dispatch(self, line: bytes) -> None:
        if answer := _ANSWER.match(line):
            self._answered(int(answer[1]), line[answer.end():-1])
            return
        event = _EVENT.match(line)
        end = event and _EVENT_END.search(line, max(event.end(), len(line) - _EVENT_END_BYTES))
        if event and end:
            self._happened(int(event[1]), Event(event[2].decode(), line[event.end():end.start()]))
            return
        try:
            self._dispatch_decoded(orjson.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            self.close()  # not the control protocol: nothing on this connection can be trusted any more

    def _dispatch_decoded(self, frame: dict[str, Any]) -> None:
        if (carry_out := self._orders.get(frame.get("method", ""))) is not None:
            carry_out()
        elif frame.get("method") is not None:
            params = frame["params"]
            self._happened(params["id"], Event(str(params["event"]), orjson.dumps(params.get("data"))))
        elif "error" in frame:
            self._answered(frame["id"], read_error(frame["error"]))
        else:
            self._answered(frame["id"], orjson.dumps(frame["result"]))

    def _answered(self, id: int, outcome: bytes | OrpheusError) -> None:
        waiting = self._waiting.pop(id, None)
        if waiting is not None:
            self._end(waiting, outcome)

    def _happened(self, id: int, event: Event) -> None:
        waiting = self._waiting.get(id)
        if isinstance(waiting, Stream):
            waiting.push(event)

    def _end(self, waiting: asyncio.Future[bytes] | Stream, outcome: bytes | OrpheusError) -> None:
        if isinstance(waiting, Stream):
            waiting.end(outcome)
        elif not waiting.done():
            if isinstance(outcome, OrpheusError):
                waiting.set_exception(outcome)
            else:
                waiting.set_result(outcome)

    def _forget(self, id: int) -> None:
        self._waiting.pop(id, None)


def _frame(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _unreachable(why: str) -> OrpheusError:
    return OrpheusError("unreachable", f"cannot reach the daemon: {why}; a run that had begun may have finished")
