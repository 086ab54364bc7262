"""What a test may not leave behind: a process, a thread, an open file or socket.

The test process becomes a subreaper: whatever loses its parent below it becomes its child, so that its children
are all there is to look at, however far away a process was started.
"""

import ctypes
import gc
import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

from tests.eventually import eventually

PR_SET_CHILD_SUBREAPER = 36
#: Orphans of a daemon that was killed leave by themselves; they get this long.
LEAVE_TIMEOUT_S = 3.0


class Census(NamedTuple):
    """What this process holds at one moment: process ids, descriptor numbers, thread ids."""

    children: frozenset[int]
    fds: frozenset[int]
    threads: frozenset[int]


def adopt_orphans() -> None:
    """From now on orphaned descendants become our children. Raises OSError when the kernel refuses."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def census() -> Census:
    """Cheap enough to take before and after each test."""
    return Census(_children(), _fds(), frozenset(thread.ident or 0 for thread in threading.enumerate()))


def left_since(before: Census) -> list[str]:
    """A line for each thing that is here now and was not there before; processes among them are killed."""
    try:
        eventually(lambda: not _living(before.children), LEAVE_TIMEOUT_S)
        left = []
    except AssertionError:
        left = [f"process {pid}: {_cmdline(pid)}" for pid in sorted(_living(before.children))]
        _kill(before.children)
    left += _new_threads(before)
    if len(_fds()) > len(before.fds):
        gc.collect()
        opened = sorted(_fds() - before.fds)
        if len(_fds()) > len(before.fds):
            left += [f"fd {fd}: {_target(fd)}" for fd in opened]
    return left


def _new_threads(before: Census) -> list[str]:
    new = [thread for thread in threading.enumerate() if thread.ident not in before.threads]
    for thread in new:
        thread.join(LEAVE_TIMEOUT_S)
    return [f"thread {thread.name}" for thread in new if thread.is_alive()]


def _children() -> frozenset[int]:
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:
            continue  # a thread that ended meanwhile
    return frozenset(pids)


def _living(known: frozenset[int]) -> set[int]:
    """Children that are not in `known` and still run; the dead among them are reaped."""
    living: set[int] = set()
    for pid in _children() - known:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                living.add(pid)
        except ChildProcessError:
            continue  # somebody else reaped it meanwhile
    return living


def _kill(known: frozenset[int]) -> None:
    # What they leave behind becomes our child in turn, so this ends when nothing is left.
    def none_left() -> bool:
        for pid in _living(known):
            os.kill(pid, signal.SIGKILL)
        return not _living(known)

    eventually(none_left, LEAVE_TIMEOUT_S, "killed processes to be gone")


def _fds() -> frozenset[int]:
    """Open descriptors, but for the one that lists them."""
    listed = frozenset(int(path.name) for path in Path("/proc/self/fd").iterdir())
    return frozenset(fd for fd in listed if _target(fd))


def _target(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return ""


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"
