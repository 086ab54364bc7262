"""Lets large messages of workers wait in their sockets while the daemon holds much that others have yet to take.

A result may have megabytes, and hundreds of workers may have one at the same moment: a door and the run log take
them one after the other. What is small is not worth a wait, and never waits.
"""

import asyncio
import time
from collections.abc import Callable

from orpheusd.process.reading import Reading

#: A message of which this much has arrived, and not its end, is large.
LARGE_BYTES = 256 * 1024
#: How often it is seen whether something was taken; a large result takes longer than that to arrive.
LOOK_S = 0.01
#: After this the worker waits no more: whoever takes nothing for so long is dealt with by its own limits.
LONGEST_S = 5.0


class Room:
    """Invariant: what is in `_waiting` is not read from, and a look is to come; `_until` has the end of the wait of
    each message that has waited and is still arriving.

    `takers`: how many bytes each of them has been given and has not taken yet, and with how many others wait.
    """

    def __init__(self) -> None:
        self.takers: list[tuple[Callable[[], int], int]] = []
        self._until: dict[Reading, float] = {}
        self._waiting: dict[Reading, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def arriving(self, reading: Reading) -> None:
        """More of a large message has arrived on it, and not its end."""
        if reading in self._waiting or reading.closing or not self._is_short():
            return
        if time.monotonic() < self._until.setdefault(reading, time.monotonic() + LONGEST_S):
            reading.hold(self)
            self._waiting[reading] = None
            self._arm()

    def arrived(self, reading: Reading) -> None:
        """The message is there to its end, or what there will be of it."""
        self.read_on(reading)
        self._until.pop(reading, None)

    def read_on(self, reading: Reading) -> None:
        """It waits no more."""
        if reading in self._waiting:
            del self._waiting[reading]
            reading.go_on(self)

    def _is_short(self) -> bool:
        return any(held_bytes() > limit_bytes for held_bytes, limit_bytes in self.takers)

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """One may go on at a time: with what it brings, there may be no room for the next."""
        self._timer = None
        for reading in list(self._waiting)[:1]:
            if reading.closing or time.monotonic() >= self._until[reading] or not self._is_short():
                self.read_on(reading)
        self._arm()
