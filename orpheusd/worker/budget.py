"""How much output may pass: a fixed allowance for a run, a refilling bucket for everything else.

It counts; what to do with the excess is its owner's affair.
"""


class Allowance:
    """So many bytes and no more. Invariant: once it refused, it refuses for ever, so that no later line looks
    as if nothing were missing before it."""

    __slots__ = ("_left_bytes",)

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    def take(self, size_bytes: int, now: float) -> bool:
        if size_bytes > self._left_bytes:
            self._left_bytes = -1
            return False
        self._left_bytes -= size_bytes
        return True

    def exhausted(self, now: float) -> bool:
        return self._left_bytes < 0


class TokenBucket:
    """A burst, then a steady rate. Invariant: never holds more than `burst_bytes`."""

    __slots__ = ("_burst_bytes", "_held_bytes", "_rate_bytes_s", "_refilled_at")

    def __init__(self, burst_bytes: int, rate_bytes_s: int, now: float) -> None:
        self._burst_bytes = burst_bytes
        self._rate_bytes_s = rate_bytes_s
        self._held_bytes = float(burst_bytes)
        self._refilled_at = now

    def take(self, size_bytes: int, now: float) -> bool:
        self._refill(now)
        if size_bytes > self._held_bytes:
            return False
        self._held_bytes -= size_bytes
        return True

    def exhausted(self, now: float) -> bool:
        """Whether not even a short line would pass now."""
        self._refill(now)
        return self._held_bytes < 1024

    def _refill(self, now: float) -> None:
        if now > self._refilled_at:
            gained = (now - self._refilled_at) * self._rate_bytes_s
            self._held_bytes = min(self._burst_bytes, self._held_bytes + gained)
            self._refilled_at = now
