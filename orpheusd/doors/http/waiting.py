"""What a connection can wait for, who has waited how long for its client, and who goes when the door is full.

It knows nothing of HTTP or of sockets.
"""

from collections import OrderedDict
from enum import Enum
from typing import Generic, TypeVar

Who = TypeVar("Who")


class Phase(Enum):
    """What a connection waits for."""

    HEADERS = "headers"  # the rest of a request's headers
    BODY = "body"  # more of a request's body, of which nothing was executed yet
    ANSWER = "answer"  # our own answer
    IDLE = "idle"  # the first byte of the next request
    LINGER = "linger"  # the client, to close its side; what it still sends is dropped
    CLOSING = "closing"  # the end of what it is still to read, then it is gone


#: Who is let go for a newcomer: of the first of these that somebody has been in for so long (s), the one that has been
#: in it for longest. Whoever has just come, spoken or been refused has a moment for what comes next. In the other
#: phases the wait is our own, or has its limit already.
PATIENCE_S = {Phase.IDLE: 0.0, Phase.LINGER: 0.1, Phase.HEADERS: 0.25, Phase.BODY: 0.1}


class Waiting(Generic[Who]):
    """Invariant: each is in one queue at most, and each queue is in the order in which its waits began."""

    def __init__(self) -> None:
        self._queues: dict[Phase, OrderedDict[Who, float]] = {phase: OrderedDict() for phase in PATIENCE_S}

    def change(self, who: Who, before: Phase, after: Phase, now: float) -> None:
        """A new wait begins, even when it is for the same as before. `now`: seconds, never set back."""
        if (left := self._queues.get(before)) is not None:
            left.pop(who, None)
        if (entered := self._queues.get(after)) is not None:
            entered[who] = now

    def somebody(self) -> bool:
        """Whether somebody may be let go, be it after a while."""
        return any(self._queues.values())

    def longest(self, now: float) -> Who | None:
        """Who is to go first; None when nobody may be let go, yet or at all."""
        for phase, queue in self._queues.items():
            if queue:
                who, since = next(iter(queue.items()))
                if now - since > PATIENCE_S[phase]:
                    return who
        return None
