"""Restarting: when a slot whose worker died may have a new one, and when an agent has had enough.

A slot that keeps losing workers waits longer each time. An agent that loses `INTENSITY` workers within
`WINDOW_S` without completing one run in between is quarantined: nobody is helped by starting it again. A new
version that loses `PROBATION_DEATHS` of them in its first minute, before it has completed a run, is rolled back.
A completed run clears the record, so workers that are killed from outside never count against an agent
that works. While there is a record, all slots of the agent share one pace: however many they are, a crash loop
is a handful of starts a minute.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from orpheusd.core.agent import Settings
    from orpheusd.core.worker import Worker

#: Supervisors of this family restart at most a handful of times a minute before they give up.
INTENSITY = 5
WINDOW_S = 60.0
#: How long an agent is refused; long enough to be noticed, short enough to recover by itself.
QUARANTINE_S = 30.0
#: One death may be chance and two may be one bad input that was tried again; fewer than INTENSITY, so that going back
#: comes before giving up.
PROBATION_DEATHS = 3
#: A version that is broken shows it with its first runs; later deaths are more likely somebody else's doing.
PROBATION_S = 60.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 30.0
#: Deaths within this time have one cause, such as a template that takes its workers along: nothing that was started
#: to replace the first of them can have died yet.
ONE_CAUSE_S = BACKOFF_FIRST_S / 2


class Backoff:
    """When something that keeps dying may be started again: each time later, until it has succeeded."""

    __slots__ = ("delay_s", "not_before", "streak")

    def __init__(self) -> None:
        self.streak = 0
        self.delay_s = 0.0
        self.not_before = 0.0

    def succeeded(self) -> None:
        self.streak = 0
        self.delay_s = 0.0
        self.not_before = 0.0

    def failed(self, now: float, uniform: Callable[[], float]) -> None:
        """It died unasked. `uniform` gives numbers from 0 to 1, so that not all are started again in step."""
        self.streak += 1
        most_s = min(BACKOFF_FIRST_S * 2.0 ** (self.streak - 1), BACKOFF_MOST_S)
        self.delay_s = most_s * (0.5 + uniform() / 2)
        self.not_before = now + self.delay_s

    def started(self, now: float) -> None:
        """One of several that share this backoff is started: the next waits as long again."""
        self.not_before = max(self.not_before, now + self.delay_s)


class Slot(Backoff):
    """A place in the pool. Invariant: it has at most one worker that is not DRAINING or further on."""

    __slots__ = ("worker",)

    def __init__(self) -> None:
        super().__init__()
        self.worker: Worker | None = None


class Previous(NamedTuple):
    """The version that served before, to go back to by itself if the present one has not worked `until` then."""

    version: int
    settings: "Settings"
    until: float


class Record:
    """The recent failures of one agent. Invariant: at most INTENSITY times, oldest first."""

    __slots__ = ("_times", "reason")

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=INTENSITY)
        self.reason = ""

    def __len__(self) -> int:
        return len(self._times)

    def failed(self, now: float, reason: str) -> bool:
        """Whether it is a failure of its own, and not the same again."""
        self.reason = reason or self.reason
        alone = not self._times or now - self._times[-1] >= ONE_CAUSE_S
        if alone:
            self._times.append(now)
        return alone

    def clear(self) -> None:
        self._times.clear()

    def exhausted(self, now: float) -> bool:
        """Whether the agent is to be quarantined."""
        return len(self._times) == INTENSITY and now - self._times[0] <= WINDOW_S
