"""A large message waits in its socket while others have much to take, but not for ever; real sockets on uvloop."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import uvloop

from orpheusd.process import room as module
from orpheusd.process.reading import Reading
from orpheusd.process.room import Room

#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()

Scene = Callable[[Room, "Ear", socket.socket], Awaitable[None]]


class Ear(asyncio.Protocol):
    """Hears, and asks for room each time."""

    def __init__(self, room: Room) -> None:
        self.heard = 0
        self._room = room

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.reading = Reading(self.transport)

    def data_received(self, data: bytes) -> None:
        self.heard += len(data)
        self._room.arriving(self.reading)


def play(behind: list[int], scene: Scene) -> None:
    async def bounded() -> None:
        room = Room()
        room.takers = [(lambda: 0, 1), (lambda: asked(behind), 100)]
        ours, theirs = socket.socketpair()
        with theirs:
            ear = Ear(room)
            await asyncio.get_running_loop().create_unix_connection(lambda: ear, sock=ours)
            theirs.sendall(b"a")
            try:
                async with asyncio.timeout(10):
                    await scene(room, ear, theirs)
            finally:
                ear.transport.abort()

    uvloop.run(bounded())


def asked(behind: list[int]) -> int:
    """The first of these numbers; the second counts how often it was asked for."""
    behind[1] += 1
    return behind[0]


async def until(predicate: Callable[[], bool]) -> None:
    """`play` has the deadline."""
    while not predicate():
        await asyncio.sleep(0.001)


def test_a_large_message_goes_on_when_there_is_room() -> None:
    behind = [101, 0]

    async def scene(_room: Room, ear: Ear, theirs: socket.socket) -> None:
        await until(lambda: ear.heard == 1)
        theirs.sendall(b"b")
        looks = behind[1]
        await until(lambda: behind[1] > looks + 3)
        assert ear.heard == 1, "it waits in the socket"
        behind[0] = 100
        await until(lambda: ear.heard == 2)

    play(behind, scene)


def test_a_message_waits_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 0.05)

    async def scene(room: Room, ear: Ear, theirs: socket.socket) -> None:
        await until(lambda: ear.heard == 1)
        theirs.sendall(b"b")
        await until(lambda: ear.heard == 2)
        assert not room._waiting, "it has waited"
        room.arrived(ear.reading)
        theirs.sendall(b"c")
        await until(lambda: bool(room._waiting))
        assert ear.heard == 3, "the next one waits anew"

    play([101, 0], scene)


def test_the_last_words_of_the_dead_are_not_waited_with() -> None:
    async def scene(room: Room, ear: Ear, theirs: socket.socket) -> None:
        await until(lambda: ear.heard == 1)
        theirs.sendall(b"b")
        room.read_on(ear.reading)
        await until(lambda: ear.heard == 2)
        room.read_on(ear.reading)
        room.read_on(ear.reading)

    play([101, 0], scene)


def test_who_is_gone_is_forgotten() -> None:
    async def scene(room: Room, ear: Ear, _theirs: socket.socket) -> None:
        await until(lambda: ear.heard == 1)
        ear.transport.abort()
        await until(lambda: not room._waiting)
        room.arriving(ear.reading)
        room.arrived(ear.reading)
        assert not room._waiting and not room._until

    play([101, 0], scene)


def test_reading_goes_on_when_nobody_holds_it_back() -> None:
    async def scene(_room: Room, ear: Ear, theirs: socket.socket) -> None:
        await until(lambda: ear.heard == 1)
        ear.reading.hold("one")
        ear.reading.hold("other")
        theirs.sendall(b"b")
        ear.reading.go_on("one")
        ear.reading.go_on("nobody")
        await asyncio.sleep(0)
        assert ear.heard == 1
        ear.reading.go_on("other")
        await until(lambda: ear.heard == 2)

    play([0, 0], scene)
