"""Holds every worker to the memory that its agent may use, by control groups where there are any, else by looking.

A template is held to as much, without its workers: an agent's code may run in it too. Looking finds a process within
LATEST_S of its crossing the limit, unless so many are there that looking at all of them would take more than a fifth
of the processor. It counts what each started too (process/usage.py).
What becomes of one that is over is its owner's business.
"""

import asyncio
import time
from collections.abc import Callable, Container
from heapq import heappop, heappush
from typing import NamedTuple

from orpheusd.process.causes import MB, OutOfMemory
from orpheusd.process.groups import TASKS_LIMIT, Groups
from orpheusd.process.pidfds import PidFd
from orpheusd.process.usage import Usage, own_bytes, usage
from orpheusd.tasks import must_not_fail

#: A look costs some 30 µs. One that is over half of its limit is looked at more often, so that it gets less far.
CALM_S, NEAR_S = 0.5, 0.1
#: Few agents have as many processes; one that makes them without end has twice as many at the next look. So many are
#: counted in a millisecond, more are counted aside.
MANY_PROCESSES = 32
#: Over the limit is who is so twice: a process about to execute another shares its memory for a moment.
AGAIN_S = 0.05
#: A crossing is seen after CALM_S, judged AGAIN_S later, and both may come a turn late.
LATEST_S = 1.0
#: Workers whose many processes are counted, and as many whose pages are, in threads: of six on two processors.
ASIDE_AT_ONCE = 2
#: Of each turn, and the least between two: a fifth of a processor at most.
TURN_S, PAUSE_S = 0.005, 0.02


class Fate(NamedTuple):
    """What a dead worker's limit had to do with its death. `oom` is None when it was nothing."""

    oom: OutOfMemory | None
    peak_bytes: int


#: The pids below a process that are held by themselves; None while they are not all known.
Apart = Callable[[], Container[int] | None]


class _Held:
    """One process under a limit, with what it started. `crossed` once it has been found over it; `many` when the last
    look has found many processes; `weighed` while its pages are counted."""

    __slots__ = (
        "apart", "crossed", "doubted", "grouped", "id", "limit_bytes", "many", "peak_bytes", "process", "weighed",
    )  # fmt: skip

    def __init__(self, id: str, process: PidFd, limit_bytes: int, apart: Apart) -> None:
        self.id = id
        self.process = process
        self.limit_bytes = limit_bytes
        self.apart = apart
        self.grouped = False
        self.doubted = False
        self.crossed = False
        self.weighed = False
        self.many = False
        self.peak_bytes = 0


class Limits:
    """Invariant: everybody in `_held` is in a group, or in `_due` with the time of the next look, or looked at.

    `over` is told who has to die, and why. `reason`: why there are no groups.
    """

    def __init__(self, over: Callable[[str, str], None]) -> None:
        self.reason = "no control groups were asked for"
        self._over = over
        self._groups: Groups | None = None
        self._grouping = False
        self._held: dict[str, _Held] = {}
        self._due: list[tuple[float, int, _Held]] = []
        self._pushed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._weighing = self._counting = 0

    @property
    def mode(self) -> str:
        """`cgroup` or `sampling`."""
        return "cgroup" if self._grouping else "sampling"

    def use(self, groups: Groups | None, reason: str) -> None:
        """For those who are yet to come."""
        self._groups, self._grouping, self.reason = groups, groups is not None, reason

    def begin(self, id: str, process: PidFd, limit_bytes: int, apart: Apart = frozenset) -> None:
        """Hold a worker or a template to its limit; 0 is none."""
        if not limit_bytes:
            return
        held = self._held[id] = _Held(id, process, limit_bytes, apart)
        if self._groups is not None and self._grouping:
            held.grouped = True
            try:
                self._groups.begin(id, process.pid, limit_bytes)
                return
            except ProcessLookupError:
                return  # it is dead already, and nobody else's group is worse for that
            except OSError as error:
                held.grouped, self._grouping = False, False
                self.reason = f"the control group of {id} cannot be made: {error.strerror}"
        self._push(held, time.monotonic() + CALM_S)
        self._arm()

    def end(self, id: str) -> Fate:
        """It is dead."""
        held = self._held.pop(id, None)
        if held is None:
            return Fate(None, 0)
        killer = "orpheusd" if held.crossed else ""
        if held.grouped and self._groups is not None:
            spent = self._groups.end(id)
            killer, held.peak_bytes = "the kernel" if spent.killed else "", spent.peak_bytes
        oom = OutOfMemory(killer, held.limit_bytes, held.peak_bytes) if killer else None
        return Fate(oom, held.peak_bytes)

    def _push(self, held: _Held, at: float) -> None:
        self._pushed += 1
        heappush(self._due, (at, self._pushed, held))

    def _arm(self) -> None:
        if self._timer is None and self._due:
            delay_s = max(self._due[0][0] - time.monotonic(), PAUSE_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        began = time.monotonic()
        while self._due and self._due[0][0] <= began and time.monotonic() < began + TURN_S:
            held = heappop(self._due)[2]
            if self._held.get(held.id) is not held or held.process.exited():
                continue
            apart = held.apart()
            if apart is None:
                self._push(held, began + NEAR_S)
                continue
            used = None if held.many else usage(held.process.pid, MANY_PROCESSES, apart)
            if used is not None and used.processes <= MANY_PROCESSES:
                self._look(held, used)
            elif self._counting < ASIDE_AT_ONCE:
                self._counting += 1
                asyncio.get_running_loop().create_task(self._look_aside(held, apart)).add_done_callback(must_not_fail)
            else:
                self._push(held, began + NEAR_S)
        self._arm()

    async def _look_aside(self, held: _Held, apart: Container[int]) -> None:
        """Hundreds of processes are counted in some 30 ms, for which the loop has no time."""
        used = await asyncio.to_thread(usage, held.process.pid, TASKS_LIMIT, apart)
        self._counting -= 1
        if self._held.get(held.id) is held:
            self._look(held, used)
            self._arm()

    def _look(self, held: _Held, used: Usage) -> None:
        """Judge what was seen, and look again unless it is over."""
        delay_s = self._judged(held, used)
        if delay_s:
            self._push(held, time.monotonic() + delay_s)

    def _judged(self, held: _Held, used: Usage) -> float:
        """When to look again; 0 when it is over."""
        held.peak_bytes = max(held.peak_bytes, used.memory_bytes)
        held.many = used.processes > MANY_PROCESSES
        if used.processes > TASKS_LIMIT:
            self._over(held.id, f"it has more than {TASKS_LIMIT} processes")
            return 0.0
        if used.memory_bytes <= held.limit_bytes:
            held.doubted = False
            return NEAR_S if used.memory_bytes > held.limit_bytes // 2 or held.many else CALM_S
        if not held.doubted:
            held.doubted = True
            return AGAIN_S
        if not held.weighed and self._weighing < ASIDE_AT_ONCE:
            held.weighed = True
            self._weighing += 1
            asyncio.get_running_loop().create_task(self._weigh(held)).add_done_callback(must_not_fail)
        return NEAR_S if held.many else CALM_S

    async def _weigh(self, held: _Held) -> None:
        """The kernel counts pages under a lock that a process holds while it forks: with hundreds of those about, that
        takes seconds, in which it may not be the loop that waits, and processes are counted on."""
        own = await asyncio.to_thread(own_bytes, held.process.pid, TASKS_LIMIT, held.apart() or ())
        held.weighed = False
        self._weighing -= 1
        if own > held.limit_bytes and self._held.get(held.id) is held and held.apart() is not None:
            held.crossed = True
            self._over(held.id, f"its memory is over the limit of {held.limit_bytes // MB} MB")
