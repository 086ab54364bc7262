"""Reads that wait for what they ask about (`?wait=`): while their time lasts, their client stays, and there is room.

It knows nothing of what is asked, nor of connections.
"""

import asyncio
from collections.abc import Coroutine
from itertools import islice
from typing import Any

from starlette.types import Receive

from orpheusd.doors.http.events import while_there


class Waits:
    """Invariant: `_cuts` has a future for each wait that goes on, in the order in which they began."""

    def __init__(self) -> None:
        self._cuts: dict[asyncio.Future[None], None] = {}

    async def answer(self, asking: Coroutine[Any, Any, bytes], receive: Receive) -> bytes | None:
        """The answer, or None when the wait was cut short. Raises what `asking` raises, and ClientGone."""
        asked = asyncio.create_task(while_there(asking, receive))
        cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cuts[cut] = None
        try:
            await asyncio.wait((asked, cut), return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else None
        finally:
            self._cuts.pop(cut, None)
            asked.cancel()

    def cut_short(self, number: int) -> None:
        """End the `number` waits that have lasted longest; fewer when there are not so many."""
        for cut in list(islice(self._cuts, number)):
            del self._cuts[cut]
            cut.set_result(None)
