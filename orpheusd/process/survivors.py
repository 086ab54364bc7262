"""The last resort: processes that outlived what they belong to, found by the tag in their environment.

A tag is `NAME=value` as it stands in /proc/PID/environ, so it finds whatever was exec'd under it. It knows
nothing of why somebody is to die. Where a pid namespace confines a template, the kernel does this better.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from orpheusd.process.pidfds import PidFd

#: Killing is a matter of milliseconds; what is not gone by then sits in the kernel and dies when it leaves it.
DEADLINE_S = 2.0

#: An environment is at most a quarter of the stack limit (execve(2)), 2 MiB as usual; tags are set first.
_ENVIRON_LIMIT_BYTES = 2 * 1024 * 1024

_PROC = Path("/proc")


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
    return sorted({int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()} - {os.getpid()}, reverse=True)


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
    try:
        with (_PROC / str(pid) / "environ").open("rb") as stream:
            environ = stream.read(_ENVIRON_LIMIT_BYTES)
    except OSError:
        return False
    return tag.encode() in environ.split(b"\0")


def _parent(pid: int) -> int:
    """The parent's pid, 0 when there is none or the process is gone."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return 0
    # the name, field 2, is in parentheses and may hold spaces and parentheses itself (proc(5))
    return int(stat.rpartition(b")")[2].split()[1])
