"""How late the event loop is: what no other number tells while one callback holds up all the others."""

import asyncio
import logging

log = logging.getLogger(__name__)

#: A hold-up shorter than this may pass unseen; four wake-ups a second cost nothing.
PERIOD_S = 0.25
#: The worst of so long a time is told, so that whoever looks every minute misses none.
WINDOW_S = 60.0
#: Nothing the daemon does may hold everybody up for so long; worth a line in the log.
LATE_S = 1.0


class LoopLag:
    """Invariant: between `start` and `stop` a timer is set, and `worst_s` is how late it came at worst, in seconds, in
    the last WINDOW_S and at most twice that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._now_s = 0.0
        self._before_s = 0.0
        self._turned_at = self._loop.time()

    @property
    def worst_s(self) -> float:
        return max(self._now_s, self._before_s)

    def start(self) -> None:
        self._due = self._loop.time() + PERIOD_S
        self._timer = self._loop.call_at(self._due, self._came)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _came(self) -> None:
        now = self._loop.time()
        late_s = max(0.0, now - self._due)
        if late_s > LATE_S:
            log.warning("the event loop was held up for %.1f s", late_s)
        if now - self._turned_at > WINDOW_S:
            self._before_s, self._now_s, self._turned_at = self._now_s, 0.0, now
        self._now_s = max(self._now_s, late_s)
        self.start()
