"""What each worker costs: memory, processor time, children and threads, as psutil tells.

Somebody else has the timer and the decisions; this samples one process a call, so that no call takes long
whatever the number of workers.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import psutil

from orpheusd.process.causes import MB
from orpheusd.process.oom import OomKills


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment. `cpu_percent` (of one processor) is since the sample before, 0 in the first."""

    rss_bytes: int
    cpu_percent: float
    children: int
    threads: int


@dataclass(slots=True)
class _Watched:
    process: psutil.Process
    latest: Sample | None = None
    peak_rss_bytes: int = 0


class Monitor:
    """The latest sample of every registered worker.

    Invariant: a sample is about the process that had the pid when it was registered; one that is gone has none,
    and the peak of its memory is kept until it is forgotten. `oom_kills` is looked at with each sample.
    """

    def __init__(self) -> None:
        self.oom_kills = OomKills()
        self._watched: OrderedDict[str, _Watched] = OrderedDict()

    def register(self, worker_id: str, pid: int) -> None:
        """Start to sample `pid`. A process that is gone already is not an error; it has no sample."""
        try:
            self._watched[worker_id] = _Watched(psutil.Process(pid))
        except psutil.Error:
            self._watched.pop(worker_id, None)

    def forget(self, worker_id: str) -> int:
        """Sample it no more. Its peak."""
        peak_bytes = self.peak_rss_bytes(worker_id)
        self._watched.pop(worker_id, None)
        return peak_bytes

    def sample_next(self, now: float) -> str | None:
        """Sample the worker whose turn it is, and say which; None when there is none."""
        self.oom_kills.look(now)
        if not self._watched:
            return None
        worker_id, watched = next(iter(self._watched.items()))
        self._watched.move_to_end(worker_id)
        watched.latest = _sample(watched.process)
        if watched.latest is not None:
            watched.peak_rss_bytes = max(watched.peak_rss_bytes, watched.latest.rss_bytes)
        return worker_id

    def latest(self, worker_id: str) -> Sample | None:
        watched = self._watched.get(worker_id)
        return None if watched is None else watched.latest

    def peak_rss_bytes(self, worker_id: str) -> int:
        """The most memory any sample has seen, 0 before the first."""
        watched = self._watched.get(worker_id)
        return 0 if watched is None else watched.peak_rss_bytes


def free_mb() -> float:
    """Megabytes (2**20) of memory that the host can give without swapping."""
    return float(psutil.virtual_memory().available / MB)


def _sample(process: psutil.Process) -> Sample | None:
    try:
        with process.oneshot():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return Sample(
                process.memory_info().rss, process.cpu_percent(None), _children(process), process.num_threads())
    except (psutil.Error, OSError):
        return None


def _children(process: psutil.Process) -> int:
    """Children of every thread. psutil reads all of /proc for this; the kernel keeps the list (proc(5))."""
    try:
        lists = [path.read_bytes() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
    except OSError:
        return 0
    return sum(len(pids.split()) for pids in lists) if lists else len(process.children())
