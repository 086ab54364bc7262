"""What waits for the disk: callbacks by run id, each called once: when what it waits for, the run's end or its
`queued` row, is in the log, or when it is known that this daemon will not write it.

It knows nothing of what it is told about, nor of the log. It belongs to the event loop's thread.
"""

import asyncio
from collections.abc import Callable

#: Called with True when it is committed, with False when it will not be.
Waiter = Callable[[bool], None]


class Commits:
    """Invariant: `_waiters` has exactly the callbacks that were not called and not forgotten."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}
        self._failed = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    def when(self, run_id: str, waiter: Waiter) -> None:
        if self._failed:
            waiter(False)
            return
        self._waiters.setdefault(run_id, []).append(waiter)
        self._quiet.clear()

    def forget(self, run_id: str, waiter: Waiter) -> None:
        """`waiter` waits no more; harmless when it was called already."""
        waiters = self._waiters.get(run_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._tell(run_id, False)

    def committed(self, run_ids: list[str]) -> None:
        if self._waiters:
            for run_id in run_ids:
                self._tell(run_id, True)

    def never(self, run_id: str) -> None:
        """What is waited for of this run is not this daemon's to write."""
        self._tell(run_id, False)

    def failed(self) -> None:
        """The log takes nothing any more."""
        self._failed = True
        for run_id in list(self._waiters):
            self._tell(run_id, False)

    async def quiet(self, timeout_s: float) -> bool:
        """Whether everybody who waits was told within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def _tell(self, run_id: str, committed: bool) -> None:
        for waiter in self._waiters.pop(run_id, ()):
            waiter(committed)
        if not self._waiters:
            self._quiet.set()
