"""When a worker or template that lost its supervisor dials again, and when it gives up.

It decides nothing but times; who dials and what is said then is the owner's.
"""

import time

#: How often to try: a new daemon takes longer than this to start, and a try costs one system call.
EVERY_S = 0.05


class Patience:
    """How long somebody who lost the supervisor waits for the next.

    Invariant: `over` is False until `ttl_s` seconds have passed since `lost`, whatever was tried meanwhile; hearing
    from a supervisor ends the wait.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._give_up_at: float | None = None

    def lost(self) -> None:
        """The channel is lost, again perhaps."""
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._ttl_s

    def heard(self) -> None:
        self._give_up_at = None

    @property
    def waiting(self) -> bool:
        return self._give_up_at is not None

    @property
    def over(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at
