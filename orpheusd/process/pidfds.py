"""Processes held by a descriptor, and who sits at the other end of a Unix socket.

A pid is a number that the kernel gives away again; a pidfd is the process itself. It knows nothing of workers
or templates, and never signals a bare number.
"""

import asyncio
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

#: Half of the scale of proc(5): when memory is short the kernel takes an agent before the daemon and its neighbours.
EXPENDABLE = 500
#: Linux 6.5; socket.h has it, Python's socket module does not yet.
SO_PEERPIDFD = 77

_CREDENTIALS = struct.Struct("3i")

#: Linux 6.9; not in Python yet.
PIDFD_SIGNAL_PROCESS_GROUP = 4


class Descriptor(Protocol):
    """Anything with a file descriptor: a socket, or what a uvloop transport calls its socket."""

    def fileno(self) -> int: ...


class Peer(NamedTuple):
    """Who connected: credentials at the time of connect(), the pid as seen from here (0: not visible here)."""

    pid: int
    uid: int
    gid: int


class PidFd:
    """One process, held so that its pid cannot come to mean another.

    Invariant: until `close`, every method speaks about the process that had `pid` when this was opened, dead or alive.
    """

    __slots__ = ("_fd", "_loop", "pid")

    def __init__(self, pid: int, fd: int | None = None) -> None:
        """Hold `pid`, through `fd` if a pidfd of it is at hand. Raises ProcessLookupError when it does not exist."""
        self.pid = pid
        self._fd = os.pidfd_open(pid) if fd is None else fd
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of_peer(cls, sock: Descriptor) -> "PidFd":
        """Hold the process that connected `sock`. Raises ProcessLookupError when it is gone or not visible here.

        Where the kernel tells no more than the number (before Linux 6.5), a peer that died since it connected may be
        confused with the next owner of its pid: the nonce in its hello has to tell.
        """
        pid = peer_of(sock).pid
        if pid <= 0:
            raise ProcessLookupError("the peer is not visible in this pid namespace")
        with socket.socket(fileno=os.dup(sock.fileno())) as own:
            try:
                return cls(pid, own.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise ProcessLookupError(f"the peer (pid {pid}) is gone: {error}") from error
        return cls(pid)

    def again(self) -> "PidFd":
        """The same process, held for somebody else."""
        return PidFd(self.pid, os.dup(self._fd))

    def fileno(self) -> int:
        return self._fd

    def send_signal(self, number: int) -> bool:
        """Whether the signal was sent: False when the process has been reaped (a zombie still takes signals)."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def kill_group(self) -> bool:
        """SIGKILL, whether it was sent, and in the same moment to the group that the process leads, if it leads one:
        killed one after the other, those that fork would be more than before. (One after the other before Linux 6.9.)
        """
        try:
            if os.getpgid(self.pid) == self.pid and self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)
                return True
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EINVAL):
                raise
        return self.send_signal(signal.SIGKILL)

    def make_expendable(self) -> None:
        """Let the kernel take it, and whatever it forks, before others when memory is short."""
        with suppress(OSError), Path(f"/proc/{self.pid}/oom_score_adj").open("r+", encoding="ascii") as stream:
            # an open file of /proc stays with its process: alive now, it is the one that is held
            if not self.exited() and int(stream.read()) < EXPENDABLE:
                stream.seek(0)
                stream.write(str(EXPENDABLE))

    def exited(self) -> bool:
        """Whether it has exited, or is not held any more."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Call `callback` once, from `loop`, when the process exits; at the next turn when it already has."""

        def fire() -> None:
            self.unwatch()
            callback()

        self.unwatch()
        loop.add_reader(self._fd, fire)
        self._loop = loop

    def unwatch(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None

    async def wait(self, timeout_s: float | None) -> bool:
        """Whether the process exited within `timeout_s` (None: for as long as it takes). Replaces another watch."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self.watch(loop, lambda: None if ended.done() else ended.set_result(None))
        try:
            async with asyncio.timeout(timeout_s):
                await ended
        except TimeoutError:
            return self.exited()
        finally:
            self.unwatch()
        return True

    def reap(self) -> int:
        """Its exit code, negative for a signal. It must be a child of ours that has exited."""
        ended = os.waitid(os.P_PIDFD, self._fd, os.WEXITED)
        if ended is None:
            raise ChildProcessError(f"pid {self.pid} has not exited")
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def close(self) -> None:
        self.unwatch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def exe_of(peer: Peer) -> str:
    """The program that a peer runs now; "" where this user may not know, or there is nobody any more."""
    try:
        return str(Path(f"/proc/{peer.pid}/exe").readlink())
    except OSError:
        return ""


def peer_of(sock: Descriptor) -> Peer:
    """Who connected `sock`, a Unix socket (unix(7), SO_PEERCRED)."""
    with socket.socket(fileno=os.dup(sock.fileno())) as own:
        return Peer(*_CREDENTIALS.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))
