"""Those who say much, or dial much, at a real socket: how much of it is heard before others have their turn."""

import asyncio
import json
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from orpheusd.process import entrance
from orpheusd.process.channel import Channel
from orpheusd.process.entrance import Entrance
from orpheusd.process.room import Room
from orpheusd.process.shares import HEAVY_S, TURN_MESSAGES, Shares
from orpheusd.wire.worker import PROTOCOL_VERSION, Message

TIMEOUT_S = 20.0
uvloop.new_event_loop().close()  # the first of a process opens a pipe that stays


class Ears:
    """A listener that believes every hello of a worker whose id begins with `w`, and keeps what it heard: who said it,
    and how often the loop had been round."""

    def __init__(self) -> None:
        self.room = Room()
        self.heard_of: list[tuple[str, int, Message]] = []
        self.met: dict[str, Channel] = {}
        self.gone: list[str] = []
        self.dialled: list[socket.socket] = []
        self.turn = 0
        self.on_message: Callable[[Channel], None] = lambda _: None
        asyncio.get_running_loop().call_soon(self._round)

    def heard(self, channel: Channel, message: Message) -> None:
        if message.type == "hello":
            if not message.fields["id"].startswith("w"):
                channel.close()
                return
            channel.owner = message.fields["id"]
            self.met[channel.owner] = channel
            channel.met()
            return
        self.heard_of.append((channel.owner, self.turn, message))
        self.on_message(channel)

    def violated(self, channel: Channel, detail: str) -> None:
        raise AssertionError(detail)

    def closed(self, channel: Channel) -> None:
        self.gone.append(channel.owner)
        if channel.process is not None:
            channel.process.close()

    def texts(self, owner: str) -> list[str]:
        return [message.fields["text"] for who, _, message in self.heard_of if who == owner]

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not true():
                turn = self.turn
                while self.turn == turn:
                    await asyncio.sleep(0)

    def _round(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self._round)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Ears, str]]:
    """An entrance, and who listens there; its path."""
    with tempfile.TemporaryDirectory(prefix="orpheus-") as name:
        ears, path = Ears(), str(Path(name) / "s")
        place = Entrance(path, "t", ears, Shares())
        try:
            yield ears, path
        finally:
            place.close()
            for one in ears.dialled:
                one.close()
            for channel in ears.met.values():
                channel.close()
            await ears.until(lambda: len(ears.gone) >= len(ears.met))


def in_loop(story: Coroutine[Any, Any, None]) -> None:
    """In a loop like the daemon's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story)


def run(story: Callable[[Ears, str], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        async with opened() as (ears, path):
            await story(ears, path)

    in_loop(told())


def hello(id: str) -> bytes:
    fields = {"type": "hello", "protocol": PROTOCOL_VERSION, "role": "worker", "id": id, "nonce": "n"}
    return json.dumps(fields).encode() + b"\n"


def line(text: str) -> bytes:
    return json.dumps({"type": "log", "worker_id": "w", "run_id": None, "session_id": None, "stream": "stdout",
                       "text": text, "dropped_bytes": 0}).encode() + b"\n"


def dial(ears: Ears, path: str) -> socket.socket:
    """Somebody who has not said who it is."""
    one = socket.socket(socket.AF_UNIX)
    ears.dialled.append(one)
    one.setblocking(False)
    one.connect(path)
    return one


async def dialled(ears: Ears, path: str, id: str) -> socket.socket:
    """A worker whose hello was heard."""
    one = dial(ears, path)
    one.sendall(hello(id))
    await ears.until(lambda: id in ears.met)
    return one


@pytest.mark.parametrize("count", [1, 10])
def test_between_two_turns_of_the_loop_a_flood_has_its_share(count: int) -> None:
    # fault 16
    async def story(ears: Ears, path: str) -> None:
        ids = [f"w{number}" for number in range(count)]
        floods = [await dialled(ears, path, id) for id in ids]
        said = [str(number) for number in range(1000)]
        for one in floods:
            one.sendall(b"".join(map(line, said)))
        await ears.until(lambda: len(ears.heard_of) == 1000 * count)
        assert [ears.texts(id) for id in ids] == [said] * count, "all of it, in order"
        shares = Counter(turn for _, turn, _ in ears.heard_of)
        # what is heard of each as it comes, and of one that waits
        assert max(shares.values()) <= (count + 1) * TURN_MESSAGES
        assert sum(shares.values()) / len(shares) <= 3 * TURN_MESSAGES

    run(story)


def test_who_says_little_is_heard_in_the_midst_of_a_flood() -> None:
    # fault 16
    async def story(ears: Ears, path: str) -> None:
        flood, quiet = await dialled(ears, path, "w-flood"), await dialled(ears, path, "w-quiet")
        flood.sendall(b"".join(line(str(number)) for number in range(1000)))
        await ears.until(lambda: ears.heard_of)
        quiet.sendall(line("here"))
        await ears.until(lambda: ears.texts("w-quiet"))
        assert len(ears.texts("w-flood")) < 10 * TURN_MESSAGES

    run(story)


def test_nothing_more_is_read_of_a_flood_that_waits() -> None:
    # fault 16
    async def story(ears: Ears, path: str) -> None:
        flood = await dialled(ears, path, "w")
        _fill(flood)
        written, turns = 0, 20
        for _ in range(turns):
            turn = ears.turn
            await ears.until(lambda turn=turn: ears.turn > turn)
            written += _fill(flood)
        assert 0 < len(ears.heard_of) <= 2 * TURN_MESSAGES * (turns + 1)
        assert written < 300_000, "one read was taken out of the socket, which has more lines than these turns heard"

    run(story)


def test_what_came_before_the_end_is_heard_before_the_end() -> None:
    async def story(ears: Ears, path: str) -> None:
        flood = await dialled(ears, path, "w")
        ears.on_message = lambda channel: channel.close()
        flood.sendall(b"".join(line(str(number)) for number in range(1000)))
        await ears.until(lambda: ears.gone)
        assert ears.texts("w") == [str(number) for number in range(1000)]

    run(story)


def test_after_a_heavy_message_the_loop_is_others_for_as_long() -> None:
    async def story() -> None:
        loop, shares = asyncio.get_running_loop(), Shares()
        called: list[str] = []
        over = loop.create_future()
        shares.wait(lambda: called.append("light"), HEAVY_S / 2)
        shares.wait(lambda: called.append("heavy"), 0.1)
        started = loop.time()
        shares.wait(lambda: over.set_result(loop.time()), 0.0)
        ended = await asyncio.wait_for(over, TIMEOUT_S)
        assert called == ["light", "heavy"] and ended - started >= 0.09

    in_loop(story())


def test_strangers_are_let_in_at_a_rate_and_workers_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "STRANGERS_BURST", 5)
    monkeypatch.setattr(entrance, "STRANGERS_RATE_S", 0)

    async def story(ears: Ears, path: str) -> None:
        for number in range(20):
            await dialled(ears, path, f"w{number}")
        for _ in range(20):
            dial(ears, path).sendall(hello("stranger"))
        await ears.until(lambda: ears.gone.count("") == 5)
        turn = ears.turn
        await ears.until(lambda: ears.turn > turn + 100)
        assert ears.gone.count("") == 5
        monkeypatch.setattr(entrance, "STRANGERS_RATE_S", 1000)
        await ears.until(lambda: ears.gone.count("") == 20)

    run(story)


def test_so_many_may_be_inside_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "STRANGERS_INSIDE", 3)

    async def story(ears: Ears, path: str) -> None:
        silent = [dial(ears, path) for _ in range(5)]
        turn = ears.turn
        await ears.until(lambda: ears.turn > turn + 50)
        assert [_is_open(one) for one in silent] == [True] * 3 + [False] * 2
        silent[0].close()
        await ears.until(lambda: ears.gone)
        await dialled(ears, path, "w")

    run(story)


def _is_open(one: socket.socket) -> bool:
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True


def _fill(one: socket.socket) -> int:
    """Write lines until nobody takes them; how many bytes that were."""
    text, written = line("x" * 50) * 1000, 0
    try:
        while written < 100 << 20:
            written += one.send(text)
    except BlockingIOError:
        pass
    return written
