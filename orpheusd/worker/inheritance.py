"""What a forked child keeps of the template, and what it must not.

It keeps memory. It loses signals handlers, the process group, every fd but 0, 1, 2 and its stack sheet, and the
state of random number generators that do not look after themselves.
"""

import gc
import os
import resource
import signal
import sys
import threading

from orpheusd.worker.sheet import write_on

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def open_fds() -> frozenset[int]:
    """The fds of this process."""
    try:
        listed = frozenset(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
    except OSError:
        listed = frozenset(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    return frozenset(fd for fd in listed if _is_open(fd))


def reset_after_fork(stdout: int, stderr: int, sheet: int, preloaded: frozenset[int]) -> int:
    """Make a forked child of the template a process of its own, with these fds as its output and its stack sheet.

    Returns the number that the sheet has from now on.
    `preloaded` are fds that a preloaded module opened at import. They are not shared, but their numbers stay
    taken: the module's objects still hold them, and must not close or write what takes their place.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    dead = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for fd in open_fds():
        if fd in preloaded:
            os.dup2(dead, fd, inheritable=False)
        elif fd > 2 and fd not in (dead, sheet):
            os.close(fd)
    os.close(dead)
    own = os.dup(sheet)  # the lowest that is free: a template has hundreds
    os.close(sheet)
    write_on(own)
    gc.enable()
    _reseed()
    return own


def silence_output() -> None:
    """Whoever read fds 1 and 2 is gone. Nobody is to fail for that."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def threads_started() -> int:
    """How many threads of Python run beside the main one. A fork does not have them."""
    return threading.active_count() - 1


def become_subreaper() -> None:
    """Without a pid namespace of our own, orphans fall to us only if we ask for them. Raises OSError."""
    if os.getpid() == 1:
        return
    import ctypes  # noqa: PLC0415 - pid 1 does not pay for it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _reseed() -> None:
    """Python's own `random` reseeds itself in a fork; numpy's global generator does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _is_open(fd: int) -> bool:
    """The listing's own fd is in the listing, and gone."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
