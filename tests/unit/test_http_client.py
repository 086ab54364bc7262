"""The door's control client, joined by a real socket pair to a peer that the test plays itself."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import uvloop

from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.streams import Room
from orpheusd.errors import OrpheusError
from orpheusd.wire.control import DRAIN, STOP, answer, event, gone, order, refusal

TIMEOUT_S = 5.0

# libuv opens one pipe for the whole process with its first loop: here, where no test can be said to have left it.
uvloop.new_event_loop().close()


class Pair(NamedTuple):
    """A client and the daemon's end of its connection. `lost` is set when the client says it lost it; `told` has the
    orders it heard."""

    client: ControlClient
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lost: asyncio.Event
    told: asyncio.Queue[str]

    async def request(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self.reader.readline())
        return frame

    def say(self, *frames: dict[str, Any]) -> None:
        self.writer.write(b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in frames))


@asynccontextmanager
async def joined(room: Room | None = None) -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()
    told: asyncio.Queue[str] = asyncio.Queue()
    client = ControlClient(room or Room(1000, 5000), lost.set,
                           {name: partial(told.put_nowait, name) for name in (DRAIN, STOP)})
    await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=ours)
    reader, writer = await asyncio.open_unix_connection(sock=theirs, limit=2**25)
    try:
        yield Pair(client, reader, writer, lost, told)
    finally:
        writer.close()
        client.close()
        await lost.wait()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await scene()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def test_answers_find_their_calls_in_any_order() -> None:
    async def scene() -> None:
        async with joined() as pair:
            calls = [asyncio.create_task(pair.client.call("run", {"n": n})) for n in range(10)]
            requests = [await pair.request() for _ in calls]
            assert [one["params"] for one in requests] == [{"n": n} for n in range(10)]
            pair.say(*(answer(one["id"], one["params"]) for one in reversed(requests)))
            assert await asyncio.gather(*calls) == [b'{"n":%d}' % n for n in range(10)]

    play(scene)


def test_a_refusal_is_an_error_with_its_details() -> None:
    async def scene() -> None:
        async with joined() as pair:
            call = asyncio.create_task(pair.client.call("run", {}))
            id = (await pair.request())["id"]
            pair.say(refusal(id, OrpheusError("session-queue-full", "full", {"request_id": "r-1"})))
            with pytest.raises(OrpheusError) as caught:
                await call
            assert (caught.value.code, caught.value.message) == ("session-queue-full", "full")
            assert caught.value.details == {"request_id": "r-1", "retry_after_s": 1}

    play(scene)


def test_an_answer_nobody_waits_for_any_more_is_dropped() -> None:
    async def scene() -> None:
        async with joined() as pair:
            abandoned = asyncio.create_task(pair.client.call("run", {}))
            first = await pair.request()
            abandoned.cancel()
            await asyncio.gather(abandoned, return_exceptions=True)
            assert await pair.request() == gone(first["id"])
            call = asyncio.create_task(pair.client.call("health", {}))
            second = await pair.request()
            pair.say(answer(first["id"], 1), answer(9_999, 2), event(first["id"], "run", {"event": "log", "data": 1}),
                     answer(second["id"], 3))
            assert await call == b"3"

    play(scene)


@pytest.mark.parametrize("name", [DRAIN, STOP])
def test_an_order_is_heard_after_all_that_was_said_before(name: str) -> None:
    # fault 46: a stream's result is not to be lost because the door was told to go
    async def scene() -> None:
        async with joined(Room(10**6, 10**6)) as pair:
            stream = pair.client.stream("run", {})
            id = (await pair.request())["id"]
            pair.say(*(event(id, "run", {"event": "output", "data": "x" * 5000, "seq": n}) for n in range(50)),
                     answer(id, "the end"), order(name))
            assert await pair.told.get() == name
            assert stream.outcome == b'"the end"'
            assert not pair.lost.is_set()

    play(scene)


def test_the_end_of_the_connection_ends_everything_that_waits() -> None:
    async def scene() -> None:
        async with joined() as pair:
            call = asyncio.create_task(pair.client.call("run", {}))
            stream = pair.client.stream("run", {})
            answered = asyncio.create_task(pair.client.call("health", {}))
            requests = [await pair.request() for _ in range(3)]
            pair.say(answer(requests[2]["id"], "last words"))
            pair.writer.close()
            assert await answered == b'"last words"'
            with pytest.raises(OrpheusError) as caught:
                await call
            assert caught.value.code == "unreachable"
            assert await stream.take(1) == []
            assert isinstance(stream.outcome, OrpheusError) and stream.outcome.code == "unreachable"
            await pair.lost.wait()
            with pytest.raises(OrpheusError):
                await pair.client.call("health", {})

    play(scene)


@pytest.mark.parametrize("number", [b',"seq":7', b""])
def test_payloads_are_the_bytes_that_were_sent(number: bytes) -> None:
    """Even where they look like the frame around them. `number`: only output has one."""
    payloads = [b'{"seq":1}', b'{"a":1,"seq":5}', b'[{"a":{"seq":5}}]', b'",\\"seq\\":5}}"', b"1180591620717411303424",
                b'"\xc3\xa9"', b"1.0"]

    async def scene() -> None:
        async with joined() as pair:
            for payload in payloads:
                stream = pair.client.stream("run", {})
                id = (await pair.request())["id"]
                pair.writer.write(
                    b'{"jsonrpc":"2.0","method":"run.event","params":{"id":%d,"event":"output","data":%b%b}}\n'
                    b'{"jsonrpc":"2.0","id":%d,"result":%b}\n' % (id, payload, number, id, payload))
                while stream.outcome is None:
                    events = await stream.take(1)
                assert [(one.name, one.data) for one in events] == [("output", payload)]
                assert stream.outcome == payload

    play(scene)


def test_a_burst_far_over_the_room_of_a_stream_reaches_one_who_keeps_taking() -> None:
    room = Room(200_000, 1_000_000)

    async def scene() -> None:
        async with joined(room) as pair:
            stream = pair.client.stream("run", {})
            id = (await pair.request())["id"]
            pair.say(*(event(id, "run", {"event": "output", "data": "x" * 1000, "seq": seq}) for seq in range(5_000)),
                     answer(id, "end"))
            taken = 0
            while stream.outcome is None:
                taken += len(await stream.take(1))
            assert (taken, stream.outcome) == (5_000, b'"end"')
            assert room.used_bytes == 0

    play(scene)


def test_one_who_does_not_take_loses_only_the_own_stream() -> None:
    room = Room(10_000, 1_000_000)

    async def scene() -> None:
        async with joined(room) as pair:
            slow, quick = pair.client.stream("run", {}), pair.client.stream("run", {})
            ids = [(await pair.request())["id"] for _ in range(2)]
            pair.say(*(event(ids[0], "run", {"event": "output", "data": "x" * 1000, "seq": seq}) for seq in range(99)),
                     event(ids[1], "run", {"event": "log", "data": "y", "seq": 0}), answer(ids[0], "too late"))
            assert [one.data for one in await quick.take(1)] == [b'"y"']
            assert await slow.take(1) == []
            assert isinstance(slow.outcome, OrpheusError) and slow.outcome.code == "overloaded"
            assert room.used_bytes == 0

    play(scene)


def test_a_daemon_that_reads_nothing_is_not_written_to_without_end() -> None:
    async def scene() -> None:
        async with joined() as pair:
            large = "x" * 8_000_000
            calls = [asyncio.create_task(pair.client.call("run", {"input": large})) for _ in range(12)]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            refused = done.pop().exception()
            assert isinstance(refused, OrpheusError) and refused.code == "overloaded"
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    play(scene)


def test_a_frame_the_daemon_would_not_take_is_not_sent() -> None:
    async def scene() -> None:
        async with joined() as pair:
            with pytest.raises(OrpheusError) as caught:
                await pair.client.call("run", {"input": [1e15] * 1_000_000})
            assert caught.value.code == "too-large"
            call = asyncio.create_task(pair.client.call("health", {}))
            assert (await pair.request())["method"] == "health"
            call.cancel()

    play(scene)
