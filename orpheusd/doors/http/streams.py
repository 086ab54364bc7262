"""A stream of one run's events between the control connection, which never waits, and a client that may be slow.

It knows nothing of HTTP, of sockets or of what events mean.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from orpheusd.errors import OrpheusError


class Event(NamedTuple):
    """Something that happened during a run. `data` is JSON text of one line."""

    name: str
    data: bytes


class Room:
    """What the events of all streams may take together. Invariant: `used_bytes` is what waits in them."""

    def __init__(self, stream_bytes: int, all_bytes: int) -> None:
        self.stream_bytes = stream_bytes
        self.all_bytes = all_bytes
        self.used_bytes = 0


class Stream:
    """Events waiting to be taken, then the outcome, which is set once.

    Invariant: the events that wait fit into `room`, or are one event. When more come, all are dropped and the
    outcome is an error: a slow reader never makes anybody else wait.
    """

    def __init__(self, room: Room) -> None:
        self.outcome: bytes | OrpheusError | None = None
        self.on_end: Callable[[], None] = _nothing
        self._room = room
        self._events: list[Event] = []
        self._waiting_bytes = 0
        self._taker: asyncio.Future[None] | None = None

    async def take(self, timeout_s: float) -> list[Event]:
        """All events that wait, as soon as there is one or an outcome; none when `timeout_s` brought neither."""
        if not self._events and self.outcome is None:
            loop = asyncio.get_running_loop()
            self._taker = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._taker
            finally:
                timer.cancel()
                self._taker = None
        return self._emptied()

    def push(self, event: Event) -> None:
        if self.outcome is not None:
            return
        size_bytes = len(event.data)
        room = self._room
        if self._events and (self._waiting_bytes + size_bytes > room.stream_bytes
                             or room.used_bytes + size_bytes > room.all_bytes):
            self._emptied()
            self.end(OrpheusError(
                "overloaded", "this stream was read too slowly: too many of its events waited. "
                "The run goes on; read faster, or ask without a stream"))
            return
        self._waiting_bytes += size_bytes
        room.used_bytes += size_bytes
        self._events.append(event)
        self._wake()

    def end(self, outcome: bytes | OrpheusError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._wake()
            self.on_end()

    def close(self, outcome: OrpheusError) -> None:
        """End the stream if it has not ended, and drop what nobody will take."""
        self._emptied()
        self.end(outcome)

    def _emptied(self) -> list[Event]:
        events, self._events = self._events, []
        self._room.used_bytes -= self._waiting_bytes
        self._waiting_bytes = 0
        return events

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)


def _nothing() -> None:
    """Nobody wants to know that the stream ended."""
