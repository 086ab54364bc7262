"""The last resort: processes that outlived what they belong to, found by the tag in their environment.

A tag is `NAME=value` as it stands in /proc/PID/environ, so it finds whatever was exec'd under it, and all that is
below that. What stands there is the process's own memory, which an agent can erase, but not in the bubblewrap around
it. It knows nothing of why somebody is to die. Where a pid namespace confines a template, the kernel does this better.
"""

import asyncio
import os
import signal
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from orpheusd.process.pidfds import PidFd

#: Killing is a matter of milliseconds; what is not gone by then sits in the kernel and dies when it leaves it.
DEADLINE_S = 2.0

#: Of one file of /proc. Tags are set first in an environment, which may have 2 MiB (execve(2)): to read all of that
#: takes some 8 ms a process, this some 20 µs.
_READ_LIMIT_BYTES = 16 * 1024


async def kill_tagged(tag: str, deadline_s: float = DEADLINE_S) -> int:
    """Kill every process that carries `tag`, and their descendants, until none is left; how many were killed.

    That none is left has to be seen twice: one who forks and exits all the time can slip through one look.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + deadline_s
    killed: set[int] = set()
    looks_in_vain = 0
    while looks_in_vain < 2 and loop.time() < give_up_at:
        doomed = _kill_found(tag)
        killed.update(process.pid for process in doomed)
        try:
            for process in doomed:
                await process.wait(max(0.0, give_up_at - loop.time()))
        finally:
            for process in doomed:
                process.close()
        looks_in_vain = 0 if doomed else looks_in_vain + 1
    return len(killed)


def kill_once(tag: str) -> int:
    """Send SIGKILL to every process that carries `tag` now, and to their descendants; how many there were."""
    doomed = _kill_found(tag)
    for process in doomed:
        process.close()
    return len(doomed)


def tagged(tag: str) -> list[int]:
    """The pids that carry `tag` (`NAME=value`, both not empty) now. A zombie carries nothing."""
    _check(tag)
    return [pid for pid in _pids() if _carries(pid, tag)]


def around(process: PidFd, tag: str) -> int | None:
    """The pid of the bubblewrap that carries `tag` and has `process` as the first of its sandbox, or None.

    When the first is dead, so is all that is inside. Whoever is inside has a number there as well as here, and so has
    its parent, unless it is the first.
    """
    outer = _parent(process.pid)
    if _numbers(process.pid)[1:] == [b"1"] and len(_numbers(outer)) == 1 and _carries(outer, tag) \
            and _parent(process.pid) == outer and not process.exited():
        return outer
    return None


async def gone(pid: int, tag: str, timeout_s: float) -> bool:
    """Whether within `timeout_s` nobody is left who has this pid and carries `tag`, or may have: who is about to end
    carries nothing any more."""
    held = _hold(pid)
    if held is None:
        return True
    try:
        carried = _read(pid, "environ").split(b"\0")
        return (any(carried) and tag.encode() not in carried) or await held.wait(timeout_s)
    finally:
        held.close()


def owner(pid: int, tags: Container[str]) -> str | None:
    """Which of `tags` this process, or else the nearest above it, carries; None when none does."""
    while pid > 1:
        for entry in _read(pid, "environ").split(b"\0"):
            if (tag := entry.decode(errors="replace")) in tags:
                return tag
        pid = _parent(pid)
    return None


def _kill_found(tag: str) -> list[PidFd]:
    """The processes that were sent SIGKILL, held open.

    They are stopped as they are found, so that none can fork and leave behind the back of the search.
    """
    _check(tag)
    doomed: dict[int, PidFd] = {}
    for pid in _pids():
        if _carries(pid, tag) and (held := _hold(pid)) is not None:
            # a number read from /proc may be another's by now: what is read again is about the process that is
            # held, or else that one is dead and takes no signal
            if _carries(pid, tag):
                doomed[pid] = held
                _signal(held, signal.SIGSTOP)
            else:
                held.close()
    if doomed:
        _add_descendants(doomed)
    for process in doomed.values():
        _signal(process, signal.SIGKILL)
    return list(doomed.values())


def _signal(process: PidFd, number: int) -> None:
    with suppress(PermissionError):  # a set-uid program, which an unprivileged daemon cannot touch
        process.send_signal(number)


def _add_descendants(doomed: dict[int, PidFd]) -> None:
    """Add the children, and theirs, of what is held: they may have been exec'd with another environment."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        children.setdefault(_parent(pid), []).append(pid)
    waiting = list(doomed)
    while waiting:
        parent = waiting.pop()
        for pid in children.get(parent, ()):
            if pid not in doomed and (held := _hold(pid)) is not None:
                if _parent(pid) == parent and not doomed[parent].exited():
                    doomed[pid] = held
                    waiting.append(pid)
                else:
                    held.close()


def _pids() -> list[int]:
    """Every process but this one, the newest first: those are the ones that may be gone the next moment."""
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return sorted(pids - {os.getpid()}, reverse=True)


def _check(tag: str) -> None:
    name, _, value = tag.partition("=")
    if not name or not value:
        raise ValueError(f"{tag!r} would find strangers")


def _hold(pid: int) -> PidFd | None:
    try:
        return PidFd(pid)
    except OSError:
        return None


def _carries(pid: int, tag: str) -> bool:
    return tag.encode() in _read(pid, "environ").split(b"\0")


def _parent(pid: int) -> int:
    """The parent's pid, 0 when there is none or the process is gone."""
    # the name, field 2, is in parentheses and may hold spaces and parentheses itself (proc(5))
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _numbers(pid: int) -> list[bytes]:
    """The pids of a process, in this pid namespace and in each below it that it is in (NSpid of proc(5))."""
    lines = _read(pid, "status").splitlines()
    return next((line.split()[1:] for line in lines if line.startswith(b"NSpid:")), [])


def _read(pid: int, name: str) -> bytes:
    """The beginning of a file of /proc, nothing when the process is gone or not ours to look at."""
    try:
        # not by open(): its buffers cost more than the reading
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _READ_LIMIT_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
