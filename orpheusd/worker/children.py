"""The processes a template has under it: its workers, and whatever falls to it when a worker dies.

The template is pid 1 of its namespace, or a subreaper: a process whose parent is gone becomes its child. Such
an orphan lives only while a live worker may still want it. This file keeps the register and judges; it reads
/proc, and neither waits for a process nor signals one.
"""

import os
from pathlib import Path
from typing import NamedTuple

#: The first bytes of an environment are enough to find our tag; an agent may make it as large as it likes.
_ENVIRON_LIMIT_BYTES = 256 * 1024
_TAG = b"ORPHEUS_WORKER="


class Death(NamedTuple):
    """A worker that was waited for. `status` is its exit code, or minus the signal that killed it; `peak_rss_bytes`
    the most memory that it, or a child it waited for, ever had."""

    worker_id: str
    status: int
    peak_rss_bytes: int


class Children:
    """The live workers by pid.

    Invariant: a pid in `workers` has not been waited for, so the number cannot be somebody else's.
    """

    def __init__(self) -> None:
        self.workers: dict[int, str] = {}
        self._doomed: set[int] = set()
        self._sweep_due = False

    def buried(self, pid: int, status: int, peak_rss_bytes: int) -> Death | None:
        """A child was waited for. Its death, if it was a worker."""
        worker_id = self.workers.pop(pid, None)
        # What a worker leaves must be looked at, and so must what its orphans leave when they are killed.
        self._sweep_due |= worker_id is not None or pid in self._doomed
        self._doomed.discard(pid)
        return None if worker_id is None else Death(worker_id, status, peak_rss_bytes)

    def take_orphans(self) -> list[int]:
        """Children to be killed, since somebody died: those that no live worker wants."""
        if not self._sweep_due:
            return []
        self._sweep_due = False
        live_ids = {worker_id.encode() for worker_id in self.workers.values()}
        orphans = [pid for pid in self.all() if pid not in self.workers and not self._is_wanted(pid, live_ids)]
        self._doomed.update(orphans)
        return orphans

    def all(self) -> list[int]:
        """The pids of all children, zombies included."""
        try:
            tasks = os.listdir("/proc/self/task")  # noqa: PTH208
            return [int(pid) for task in tasks for pid in Path(f"/proc/self/task/{task}/children").read_text().split()]
        except OSError:
            return _children_by_parent()

    def _is_wanted(self, pid: int, live_ids: set[bytes]) -> bool:
        """Whether an orphan is of a live worker: by its session, or by the tag in its environment.

        A process that was forked, not executed, and made a session of its own shows neither.
        """
        try:
            if os.getsid(pid) in self.workers:
                return True
            with Path(f"/proc/{pid}/environ").open("rb") as stream:
                environ = stream.read(_ENVIRON_LIMIT_BYTES)
        except OSError:
            return False
        tags = (entry[len(_TAG):] for entry in environ.split(b"\0") if entry.startswith(_TAG))
        return any(tag in live_ids for tag in tags)


def _children_by_parent() -> list[int]:
    """The same on a kernel without /proc/*/children."""
    own = os.getpid()
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; the parent is the second word after it.
            if int(status.read_text(errors="replace").rpartition(")")[2].split()[1]) == own:
                found.append(int(status.parent.name))
        except (OSError, ValueError, IndexError):
            continue
    return found
