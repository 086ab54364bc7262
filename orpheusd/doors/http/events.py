"""A run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), and the leaving of its
client.

A client may be slow or leave at any moment. The daemon is told of one that left, and decides what becomes of its run.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Send

from orpheusd.doors.http.answers import ClientGone, error_body
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.streams import Event, Stream
from orpheusd.errors import OrpheusError

HEARTBEAT = b": heartbeat\n\n"

_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
_LEFT = OrpheusError("cancelled", "the client of this stream is gone")


async def while_there(asking: Coroutine[Any, Any, bytes], receive: Receive) -> bytes:
    """The answer, unless the client leaves before it: then asking is given up. Raises ClientGone."""
    tasks = asyncio.create_task(asking), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def send_events(
    client: ControlClient, stream: Stream, receive: Receive, send: Send, limits: Limits
) -> None:
    """Send events until the outcome is sent or the client is gone.

    Raises the OrpheusError with which the stream ends before it has begun.
    """
    watcher = asyncio.create_task(_watch(client, stream, receive))
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
        if stream.outcome is None:
            client.leave(stream)
        stream.close(_LEFT)
        watcher.cancel()


async def _watch(client: ControlClient, stream: Stream, receive: Receive) -> None:
    await _disconnected(receive)
    client.leave(stream)
    stream.close(_LEFT)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _last(outcome: bytes | OrpheusError) -> Event:
    if isinstance(outcome, OrpheusError):
        return Event("error", error_body(outcome))
    return Event("result", outcome)


def _written(event: Event, id: int) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (id, event.name.encode(), event.data)
