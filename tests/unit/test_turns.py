"""Turns: one at a time for each name, in order, whoever gives up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.turns import MOST_WAITING, Turns

#: So many rounds of the loop are enough for everything here that can go on to go on.
ROUNDS = 10


class Players:
    """Tasks that want a turn of one name, each until it is told to go."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.story: list[str] = []
        self._go: dict[str, asyncio.Event] = {}

    def enter(self, who: str, name: str = "a") -> "asyncio.Task[None]":
        self._go[who] = asyncio.Event()

        async def play() -> None:
            async with self.turns.turn(name):
                self.story.append(f"{who} in")
                await self._go[who].wait()
                self.story.append(f"{who} out")

        return asyncio.get_running_loop().create_task(play())

    def go(self, who: str) -> None:
        self._go[who].set()


async def settle() -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


def played(body: Callable[[Players], Coroutine[Any, Any, None]]) -> list[str]:
    """What the players did in `body`, in order."""

    async def run() -> list[str]:
        players = Players()
        await body(players)
        return players.story

    return asyncio.run(run())


# fault 79
def test_they_take_turns_in_order_of_arrival() -> None:
    async def body(players: Players) -> None:
        tasks = [players.enter(who) for who in ("x", "y", "z")]
        await settle()
        assert players.story == ["x in"]
        for who in ("z", "y", "x"):  # who is ready first does not matter
            players.go(who)
            await settle()
        await asyncio.gather(*tasks)

    story = played(body)
    assert story == ["x in", "x out", "y in", "y out", "z in", "z out"]


def test_names_do_not_wait_for_each_other() -> None:
    async def body(players: Players) -> None:
        tasks = [players.enter("x", "a"), players.enter("y", "b")]
        await settle()
        assert players.story == ["x in", "y in"]
        players.go("x")
        players.go("y")
        await asyncio.gather(*tasks)

    played(body)


@pytest.mark.parametrize("moment", ["while it waits", "when its turn has just come", "while it has the turn"])
def test_one_that_is_cancelled_keeps_nobody_waiting(moment: str) -> None:
    async def body(players: Players) -> None:
        async with players.turns.turn("a"):
            second, third = players.enter("y"), players.enter("z")
            await settle()
            if moment == "while it waits":
                second.cancel()
                await settle()
        if moment == "while it has the turn":
            await settle()
        second.cancel()
        players.go("z")
        await third
        assert second.cancelled()

    story = played(body)
    assert story == [*(["y in"] if moment == "while it has the turn" else []), "z in", "z out"]


def test_an_error_inside_passes_the_turn_on() -> None:
    async def body(players: Players) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                async with players.turns.turn("a"):
                    raise ValueError("broken")

    played(body)


def test_only_so_many_may_wait() -> None:
    async def body(players: Players) -> None:
        tasks = [players.enter(str(number)) for number in range(1 + MOST_WAITING)]
        await settle()
        with pytest.raises(OrpheusError, match="changes of a are waiting already"):
            await players.enter("late")
        for number in range(1 + MOST_WAITING):
            players.go(str(number))
        await asyncio.gather(*tasks)

    played(body)
