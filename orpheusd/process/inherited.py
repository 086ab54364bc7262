"""Children of this process that an earlier image of it started: they are reaped when they end, and nothing else.

Whose processes they are, and when they are to end, others know by other means: a template dials home.
"""

import asyncio
from collections.abc import Container

import psutil

from orpheusd.process.pidfds import PidFd


def reap_inherited(but: Container[int]) -> None:
    """Reap each when it ends, `but` those that somebody else does. To be called before we have any of our own."""
    for child in psutil.Process().children():
        if child.pid not in but:
            _reap_at_end(PidFd(child.pid))


def _reap_at_end(child: PidFd) -> None:
    def ended() -> None:
        child.reap()
        child.close()

    child.watch(asyncio.get_running_loop(), ended)
