"""Streams and inboxes: what waits is bounded, and nobody waits for one who is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orpheusd.doors.http.inbox import INBOX_LIMIT, Inbox
from orpheusd.doors.http.streams import Event, Room, Stream
from orpheusd.errors import OrpheusError

DISCONNECT = {"type": "http.disconnect"}


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await scene()

    asyncio.run(bounded())


def piece(number: int) -> dict[str, Any]:
    return {"type": "http.request", "body": b"%d" % number, "more_body": True}


@given(st.lists(st.one_of(
    st.tuples(st.integers(0, 1), st.integers(0, 60)), st.tuples(st.integers(0, 1), st.sampled_from(["take", "end"])))))
def test_what_waits_never_exceeds_the_room(steps: list[tuple[int, int | str]]) -> None:
    async def scene() -> None:
        room = Room(100, 150)
        streams = [Stream(room), Stream(room)]
        waiting: list[list[int]] = [[], []]
        for which, step in steps:
            stream = streams[which]
            if step == "take":
                assert [len(one.data) for one in await stream.take(0)] == waiting[which]
                waiting[which] = []
            elif step == "end":
                stream.end(b"1")
            elif isinstance(step, int) and stream.outcome is None:
                stream.push(Event("output", b"x" * step))
                waiting[which] = [] if stream.outcome is not None else [*waiting[which], step]
            assert room.used_bytes == sum(map(sum, waiting))
            for sizes in waiting:
                assert sum(sizes) <= 100 or len(sizes) == 1
        for stream in streams:
            stream.close(OrpheusError("cancelled", "gone"))
        assert room.used_bytes == 0

    play(scene)


def test_an_outcome_is_set_once_and_said_once() -> None:
    async def scene() -> None:
        stream = Stream(Room(100, 100))
        ended: list[bool] = []
        stream.on_end = lambda: ended.append(True)
        stream.end(b"1")
        stream.end(b"2")
        stream.push(Event("output", b"late"))
        assert await stream.take(1) == []
        assert (stream.outcome, ended) == (b"1", [True])

    play(scene)


def test_taking_waits_for_an_event_or_the_time() -> None:
    async def scene() -> None:
        stream = Stream(Room(100, 100))
        assert await stream.take(0.01) == []
        taker = asyncio.create_task(stream.take(5))
        await asyncio.sleep(0)
        stream.push(Event("log", b"1"))
        assert await taker == [Event("log", b"1")]

    play(scene)


def test_an_inbox_makes_its_writer_wait_for_its_reader() -> None:
    async def scene() -> None:
        inbox = Inbox()
        written: list[int] = []

        async def write() -> None:
            for number in range(INBOX_LIMIT * 3):
                await inbox.put(piece(number))
                written.append(number)

        writer = asyncio.create_task(write())
        await asyncio.sleep(0)
        assert len(written) == INBOX_LIMIT
        read = [await inbox.get() for _ in range(INBOX_LIMIT * 3)]
        await writer
        assert read == [piece(number) for number in range(INBOX_LIMIT * 3)]

    play(scene)


def test_a_full_inbox_takes_the_news_that_the_client_is_gone_at_once() -> None:
    """Where a plain queue would block the connection for ever: its reader has answered and reads no more."""
    async def scene() -> None:
        inbox = Inbox()
        for number in range(INBOX_LIMIT):
            await inbox.put(piece(number))
        blocked = asyncio.create_task(inbox.put(piece(99)))
        await asyncio.sleep(0)
        assert not blocked.done()
        await inbox.put(DISCONNECT)
        await blocked
        await inbox.put(piece(100))
        assert [await inbox.get() for _ in range(INBOX_LIMIT + 2)] == [
            *(piece(number) for number in range(INBOX_LIMIT)), DISCONNECT, DISCONNECT]

    play(scene)
