"""What clients have still to read of their answers, of all connections together, and who goes when it is too much.

It knows nothing of HTTP or of sockets.
"""

from collections.abc import Callable


class Unread:
    """Invariant: what is held for slow readers is at most `limit_bytes`, or that of one of them. Who has taken nothing
    for longest is cut off for the others: a client that reads is not refused for those that do not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        #: By what cuts it off, in the order in which they last took something.
        self._held: dict[Callable[[], None], int] = {}

    def hold(self, cut_off: Callable[[], None], size_bytes: int) -> None:
        """So much is held for a reader now, who has just begun or has just taken something; 0 when it has all."""
        self.held_bytes += size_bytes - self._held.pop(cut_off, 0)
        if size_bytes:
            self._held[cut_off] = size_bytes
        while self.held_bytes > self._limit_bytes and len(self._held) > 1:
            longest = next(iter(self._held))
            self.held_bytes -= self._held.pop(longest)
            longest()
