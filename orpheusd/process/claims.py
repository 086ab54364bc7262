"""What the daemon asks of the kernel for itself: descriptors, and a processor soon when it has something to do.

Agents may compute, fork and allocate as much as they like; who keeps order among them, and a worker that has just been
given a run, must not stand in line behind that. Whatever is not granted is done without.
"""

import ctypes
import os
import platform
import resource
import struct
from contextlib import suppress
from pathlib import Path

#: The least that the kernel takes (Linux 6.12, `sched_runtime` of an ordinary process; ignored before). Who asks for
#: short turns gets them soon, and interrupts whoever asked for longer ones; the share of the processor is the same.
#: Everything that the daemon starts inherits it: no agent takes longer turns than another.
TURN_NS = 100_000
#: As nice(1) counts, for the daemon's session where sessions share the processor (sched(7), autogroup): nine times the
#: share of one worker's.
AUTOGROUP_NICE = -10

#: sched_setattr(2) has no function in the C libraries of today.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
#: struct sched_attr, its first version: size, policy (0: ordinary), flags, nice, priority, runtime, deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")


def claim() -> None:
    """For the process that calls, and what it starts from now on."""
    _allow_descriptors()
    take_short_turns()
    if os.getsid(0) == os.getpid():  # else it would be for a shell and all that it started
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(f"{AUTOGROUP_NICE}")


def _allow_descriptors() -> None:
    """A worker costs three descriptors, a client one: the soft limit of a login shell is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def take_short_turns() -> None:
    """For the thread that calls, and what it starts from now on."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, TURN_NS, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attr, 0)
