"""What is left of a worker once it is dead, and who ended it.

It is gathered piece by piece: what we sent, what the template tells after the burial. It decides nothing.
"""

import signal
from functools import partial
from typing import Any, NamedTuple

from orpheusd.process.causes import Cause, OutOfMemory
from orpheusd.process.limits import Fate
from orpheusd.process.oom import OomKills
from orpheusd.process.pidfds import PidFd

#: What the stack of one worker may have, in characters: the size of its sheet, which a template that lies ignores.
STACK_LIMIT = 64 * 1024


class Remains(NamedTuple):
    """What a dead worker leaves: why it died, the stacks of its threads where it could tell them, and the most memory
    it had."""

    cause: Cause
    stack: str
    peak_rss_bytes: int


class Ending:
    """How one worker comes to its end.

    Invariant: `why` is the first reason for which we ended it, and "" while it has not been sent a deadly signal.
    """

    def __init__(self) -> None:
        self.why = ""
        self.status: int | None = None
        self._aborted = False
        self._stack = ""
        self._peak_rss_bytes = 0

    def send(self, process: PidFd, number: int, why: str) -> None:
        """Send a deadly signal. One that is dead already died of something else."""
        send = process.kill_group if number == signal.SIGKILL else partial(process.send_signal, number)
        if not process.exited() and send():
            self.why = self.why or why
            self._aborted |= number == signal.SIGABRT

    def buried(self, told: dict[str, Any]) -> None:
        """Its template has reaped it; `told` are the fields of `exited`."""
        self.status = told["status"]
        self._stack = told["stack"][:STACK_LIMIT]
        self._peak_rss_bytes = told["peak_rss_bytes"]

    def remains(self, fate: Fate, oom_kills: OomKills, sampled_rss_bytes: int, now: float) -> Remains:
        """`sampled_rss_bytes`: the most memory that was seen while it lived."""
        peak_bytes = max(self._peak_rss_bytes, sampled_rss_bytes, fate.peak_bytes)
        oom = fate.oom
        if oom is not None:
            oom = oom._replace(peak_bytes=max(oom.peak_bytes, peak_bytes))
        elif self.status == -signal.SIGKILL and not self.why and oom_kills.lately(now):
            oom = OutOfMemory("the kernel")
        stack = self._stack
        if not stack and self._aborted and self.status == -signal.SIGKILL:
            stack = "(no stack: it was asked for one by SIGABRT, and did not take the signal)"
        return Remains(Cause(self.status, self.why, oom), stack, peak_bytes)
