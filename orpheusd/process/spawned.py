"""What systemd executes in a new unit for an agent: it becomes the command that the daemon sends for it.

`python -m orpheusd.process.spawned`, with the daemon's connection as its standard input. It tells its pid, waits for a
word, and is the command from then on, with exactly the descriptors that came along.
"""

import fcntl
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping

from orpheusd.process.claims import take_short_turns

#: The daemon has sent all it has to say before systemd starts this.
TIMEOUT_S = 10.0
REQUEST_BYTES, MOST_FDS = 128 * 1024, 64


def main() -> None:
    asked = socket.socket(fileno=os.dup(0))
    asked.settimeout(TIMEOUT_S)
    try:
        request, fds, _, _ = socket.recv_fds(asked, REQUEST_BYTES, MOST_FDS)
        asked.send(str(os.getpid()).encode())
        if asked.recv(2) != b"go":
            sys.exit("the daemon that has asked is gone")
    except OSError as error:
        sys.exit(f"the daemon that has asked says nothing: {error}")
    wanted = json.loads(request)
    if os.getsid(0) != os.getpid():  # systemd has seen to that
        os.setsid()
    take_short_turns()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, for itself
    _place(dict(zip(wanted["fds"], fds, strict=True)))
    os.chdir(wanted["cwd"])
    os.execve(wanted["argv"][0], wanted["argv"], wanted["env"])


def _place(given: Mapping[int, int]) -> None:
    """Have exactly the descriptors `given`: the number that each shall have, and the one that it has now."""
    above = max(*given, *given.values()) + 1
    aside = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in given.items()}
    for number, fd in aside.items():
        os.dup2(fd, number)
    numbers = sorted(given)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for before, after in zip((-1, *numbers), (*numbers, most), strict=True):
        if before + 1 < after:  # an empty range is all there is to os.closerange
            os.closerange(before + 1, after)


if __name__ == "__main__":
    main()
