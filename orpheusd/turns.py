"""Turns: what may not be done twice at once is done one after another, in order of arrival.

It knows nothing of what is done, and bounds how many may wait; how long each takes is its own business.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orpheusd.errors import OrpheusError

#: More than people do to one agent at a time; a script in a loop is told so instead of being believed.
MOST_WAITING = 16


class Turns:
    """One turn at a time for each name.

    Invariant: a name is in `_waiting` while somebody has its turn, with a future for each who waits, the next first.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Inside, nobody else has the turn of `name`. Raises OrpheusError(conflict) when too many wait already."""
        waiting = self._waiting.get(name)
        if waiting is None:
            self._waiting[name] = deque()
        else:
            await self._wait(name, waiting)
        try:
            yield
        finally:
            self._pass_on(name)

    async def _wait(self, name: str, waiting: "deque[asyncio.Future[None]]") -> None:
        if len(waiting) >= MOST_WAITING:
            raise OrpheusError(
                "conflict", f"{MOST_WAITING} changes of {name} are waiting already; try again when they are over")
        mine = asyncio.get_running_loop().create_future()
        waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                waiting.remove(mine)
            else:  # it had come to be our turn in the same moment
                self._pass_on(name)
            raise

    def _pass_on(self, name: str) -> None:
        waiting = self._waiting[name]
        while waiting:
            following = waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        del self._waiting[name]
