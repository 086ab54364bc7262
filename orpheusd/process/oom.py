"""Whether the kernel is killing processes for want of memory.

Nobody is told why a SIGKILL came. But the kernel counts its own kills, for all of the host (`oom_kill` in
/proc/vmstat, Linux 4.13), so a death by SIGKILL that we did not order, at a time when it counts one, is taken for
one of them.
"""

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_COUNT = b"\noom_kill "
#: A look costs some 50 µs, a worker is sampled up to 20 times a second.
LOOK_EVERY_S = 1.0
#: Between the kernel's count and our hearing of the death: a look, the last words, the template's report.
LATELY_S = 5.0


class OomKills:
    """Invariant: `_count` is the kernel's at the last look, and `_rose_at` the time of the last look that saw more."""

    def __init__(self, vmstat: Path = _VMSTAT) -> None:
        self._vmstat = vmstat
        self._count = 0
        self._count = self._read()
        self._looked_at = self._rose_at = float("-inf")

    def look(self, now: float) -> None:
        """To be called often. `now` is monotonic seconds."""
        if now < self._looked_at + LOOK_EVERY_S:
            return
        self._look(now)

    def lately(self, now: float) -> bool:
        """Whether there was a kill in the last few seconds."""
        self._look(now)
        return now <= self._rose_at + LATELY_S

    def _look(self, now: float) -> None:
        count = self._read()
        if count > self._count:
            self._rose_at = now
        self._count, self._looked_at = count, now

    def _read(self) -> int:
        """The kernel's count; where it does not tell, what it was."""
        try:
            found = self._vmstat.read_bytes().partition(_COUNT)[2]
            return int(found.partition(b"\n")[0])
        except (OSError, ValueError):
            return self._count
