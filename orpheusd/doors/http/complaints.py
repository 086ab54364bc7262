"""What goes wrong in the door is said on stderr, and never more of it than a disk can bear.

It knows nothing of what is said.
"""

import asyncio
import logging
import time
from traceback import format_exception
from typing import Any

#: A fault that every request meets is told as well by ten tracebacks in ten seconds as by ten thousand.
WINDOW_S = 10.0
WINDOW_LIMIT = 10

_log = logging.getLogger("orpheusd.doors.http")


class Complaints:
    """Invariant: at most `WINDOW_LIMIT` of them are written in `WINDOW_S`; the others are counted."""

    def __init__(self) -> None:
        self._window_start = 0.0
        self._said = 0
        self._withheld = 0

    def failed(self, what: str, error: BaseException) -> None:
        """An exception that nobody expected, with its traceback."""
        self.say(f"{what}: {''.join(format_exception(error))}", logging.ERROR)

    def loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The exception handler of an event loop."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.failed(str(context.get("message")), error)
        else:
            self.say(str(context.get("message")), logging.ERROR)

    def say(self, text: str, level: int) -> None:
        now = time.monotonic()
        if now - self._window_start > WINDOW_S:
            if self._withheld:
                _log.warning("%d more messages were withheld", self._withheld)
            self._window_start, self._said, self._withheld = now, 0, 0
        if self._said < WINDOW_LIMIT:
            self._said += 1
            _log.log(level, "%s", text)
        else:
            self._withheld += 1
