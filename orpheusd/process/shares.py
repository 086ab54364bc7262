"""Who is heard when: channels on which more has come than is heard at once take turns.

The loop has everybody to serve, and one worker writes faster than the daemon can read. So a few messages of a channel
are heard, and what came with them is heard a few at a time, one channel each time the loop has been round. It knows
nothing of messages.
"""

import asyncio
from collections import deque
from collections.abc import Callable

#: Messages of one channel that are heard before others get their turn; one costs some 10 microseconds.
TURN_MESSAGES = 16
#: What takes longer than this was a message of megabytes: then the loop is others' for as long.
HEAVY_S = 0.001


class Shares:
    """Invariant: who waits is called once, in order; a call of `_next` is on its way exactly while somebody waits."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._coming = False
        self._rest_s = 0.0

    def wait(self, go_on: Callable[[], None], took_s: float) -> None:
        """Call `go_on` when its turn has come, in which it may wait again. `took_s`: so long it was just heard."""
        if took_s > HEAVY_S:
            self._rest_s += took_s
        self._waiting.append(go_on)
        if not self._coming:
            self._come()

    def _come(self) -> None:
        self._coming = True
        rest_s, self._rest_s = self._rest_s, 0.0
        loop = asyncio.get_running_loop()
        if rest_s:
            loop.call_later(rest_s, self._next)
        else:
            loop.call_soon(self._next)

    def _next(self) -> None:
        self._coming = False
        go_on = self._waiting.popleft()
        if self._waiting:
            self._come()
        go_on()
