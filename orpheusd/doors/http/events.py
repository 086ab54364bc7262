"""A run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Its client may be slow or leave at any moment; the run goes on all the same. It knows nothing of where the events
come from.
"""

import asyncio

from starlette.types import Receive, Send

from orpheusd.doors.http.answers import ClientGone, error_body
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.streams import Event, Stream
from orpheusd.errors import OrpheusError

HEARTBEAT = b": heartbeat\n\n"

_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
_LEFT = OrpheusError("cancelled", "the client of this stream is gone")


async def send_events(stream: Stream, receive: Receive, send: Send, limits: Limits) -> None:
    """Send events until the outcome is sent or the client is gone.

    Raises the OrpheusError with which the stream ends before it has begun.
    """
    watcher = asyncio.create_task(_watch(stream, receive))
    try:
        events = await stream.take(limits.stream_open_s)
        if not events and isinstance(stream.outcome, OrpheusError):
            raise ClientGone if stream.outcome is _LEFT else stream.outcome
        await send(_START)
        sequence = 0
        while stream.outcome is None:
            body = b"".join(_written(event, id) for id, event in enumerate(events, sequence)) or HEARTBEAT
            sequence += len(events)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            events = await stream.take(limits.heartbeat_s)
        if stream.outcome is not _LEFT:
            events += [*await stream.take(0), _last(stream.outcome)]
            body = b"".join(_written(event, id) for id, event in enumerate(events, sequence))
            await send({"type": "http.response.body", "body": body})
    finally:
        stream.close(_LEFT)
        watcher.cancel()


async def _watch(stream: Stream, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.close(_LEFT)


def _last(outcome: bytes | OrpheusError) -> Event:
    if isinstance(outcome, OrpheusError):
        return Event("error", error_body(outcome))
    return Event("result", outcome)


def _written(event: Event, id: int) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (id, event.name.encode(), event.data)
