"""A program of ours that the daemon starts and means to outlive: started, killed and reaped by a pidfd.

If the daemon is killed first, the next one finds it by its tag. When the daemon reloads it stays our child. What
systemd says to the daemon is not said to it.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd

#: What systemd.exec(5) sets for the main process of a service alone.
NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Child:
    """A process and the group it leads.

    Invariant: it is not reaped until `wait` has returned, so its pid stays its own and its group's.
    """

    def __init__(self, pid: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """A child that an earlier image of this process has started, unless `process` is given."""
        self.pid = pid
        self._process = process
        self._held = PidFd(pid)

    @classmethod
    def start(cls, argv: Sequence[str], pass_fds: Sequence[int], environ: Mapping[str, str]) -> "Child":
        """`environ` begins with the tag for `kill_leftovers`."""
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, pass_fds=tuple(pass_fds), start_new_session=True)
        return cls(process.pid, process)

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        await self._held.wait(None)
        os.killpg(self.pid, signal.SIGKILL)
        code = self._held.reap() if self._process is None else self._process.wait()
        self._held.close()
        return code

    def kill(self) -> None:
        """Kill the group; nothing happens when its leader is gone. Another signal would be lost to a process that is
        the init of a sandbox and has no handler yet: it is told by what it holds of us."""
        if self._held.send_signal(0):
            os.killpg(self.pid, signal.SIGKILL)


async def kill_leftovers(tag: str) -> None:
    """Kill what an earlier daemon started with this tag; it holds what we need."""
    await survivors.kill_tagged(tag)
