"""A program of ours that the daemon starts and means to outlive: started, signalled and reaped by a pidfd.

If the daemon is killed first, the next one finds it by its tag. What systemd says to the daemon is not said to it.
"""

import subprocess
from collections.abc import Sequence

from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd

#: What systemd.exec(5) sets for the main process of a service alone.
NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Child:
    """Invariant: the process is not reaped until `wait` has returned, so its pid stays its own."""

    def __init__(self, argv: Sequence[str], pass_fds: Sequence[int], tag: str) -> None:
        """`tag` is `NAME=value` in its environment, for `kill_leftovers`."""
        env = ["/usr/bin/env", *(f"--unset={name}" for name in NOT_FOR_CHILDREN), tag]
        self._process = subprocess.Popen(
            [*env, *argv], stdin=subprocess.DEVNULL, pass_fds=tuple(pass_fds), start_new_session=True)
        self._held = PidFd(self._process.pid)

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        await self._held.wait(None)
        code = self._process.wait()
        self._held.close()
        return code

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it is gone."""
        self._held.send_signal(number)


async def kill_leftovers(tag: str) -> None:
    """Kill what an earlier daemon started with this tag; it holds what we need."""
    await survivors.kill_tagged(tag)
