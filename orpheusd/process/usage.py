"""What a worker takes with all it started: memory and processes, read where the kernel tells it cheapest.

A process that a double fork has made somebody else's child is not found here; a control group counts it.
"""

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


class Usage(NamedTuple):
    memory_bytes: int
    processes: int


def usage(pid: int, most_processes: int, apart: Container[int] = ()) -> Usage:
    """Resident memory of `pid` and its descendants, and how many there are; of more than `most_processes`, that they
    are more. What two of them share is counted twice; who is `apart` is not, nor are their own."""
    family = _family(pid, most_processes, apart)
    return Usage(sum(map(_resident_bytes, family)), len(family))


def own_bytes(pid: int, most_processes: int, apart: Container[int] = ()) -> int:
    """The same memory with what is shared divided among those who share it. Costs some milliseconds a gigabyte."""
    return sum(map(_proportional_bytes, _family(pid, most_processes, apart)))


def _family(pid: int, most: int, apart: Container[int]) -> list[int]:
    found = [pid]
    for one in found:
        if len(found) > most:
            break
        found.extend(child for child in _children(one) if child not in apart)
    return found[:most + 1]


def _children(pid: int) -> Iterator[int]:
    """Children of every thread of it (proc(5), /proc/PID/task/TID/children)."""
    try:
        for thread in os.listdir(_PROC / str(pid) / "task"):  # noqa: PTH208 (a third of the time)
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as stream:  # noqa: PTH123
                yield from map(int, stream.read().split())
    except OSError:
        return


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as stream:  # noqa: PTH123
            return int(stream.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _proportional_bytes(pid: int) -> int:
    """Linux 4.14; where it is not told, what is resident."""
    try:
        found = (_PROC / str(pid) / "smaps_rollup").read_bytes().partition(b"\nPss:")[2]
        return int(found.split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return _resident_bytes(pid)
