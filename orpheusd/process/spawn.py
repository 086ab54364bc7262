"""Where the first process of a template comes from: this process executes it, or systemd does, in a unit of its own.

In a unit of its own a template is in a control group of its own with all it starts, so that what is done to the
daemon's (`systemctl kill`, above all) is done to no agent, and each has the limits of its unit. systemd starts one for
each connection to a socket (`Accept=yes` of systemd.socket(5)); what it executes there is `spawned.py`, which reads
from the connection what it shall become.
"""

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orpheusd.process.pidfds import PidFd

#: systemd starts a unit, and that a Python, in some 50 ms. A slow box gets this long.
UNIT_TIMEOUT_S = 10.0
#: A pid, in decimal.
_PID_BYTES = 16


class Spawned(NamedTuple):
    """A process that leads a session. `reap` buries one that has ended, and says its exit status if it was ours."""

    held: PidFd
    reap: Callable[[], int | None]


async def spawn(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, stdin: int, output: int, pass_fds: Sequence[int],
    units: Path | None,
) -> Spawned:
    """Execute `argv` with exactly these descriptors; `units` is the socket at which systemd is asked for a unit.

    Raises OSError when there is nothing to execute, or nobody to do it.
    """
    if units is None:
        # not the loop's own: uvloop lets children inherit duplicates of their stdio and stray descriptors
        process = subprocess.Popen(argv, env=env, cwd=cwd, start_new_session=True, stdin=stdin, stdout=output,
                                   stderr=output, pass_fds=tuple(pass_fds))
        return Spawned(PidFd(process.pid), process.wait)
    given = {0: stdin, 1: output, 2: output} | {fd: fd for fd in pass_fds}
    request = json.dumps({"argv": list(argv), "env": dict(env), "cwd": cwd, "fds": list(given)}).encode()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.setblocking(False)
        try:
            asked.connect(str(units))
            socket.send_fds(asked, [request], list(given.values()))
            async with asyncio.timeout(UNIT_TIMEOUT_S):
                told = await loop.sock_recv(asked, _PID_BYTES)
            # it waits for a word before it becomes the command: until then its number is its own
            held = PidFd(int(told))
            asked.send(b"go")
        except (OSError, ValueError) as error:
            why = "it said nothing" if isinstance(error, ValueError) else error.strerror or "it took too long"
            raise OSError(f"systemd gives it no unit at {units}: {why}; `systemctl status orpheus-agents.socket` "
                          "tells more") from error
    return Spawned(held, lambda: None)
