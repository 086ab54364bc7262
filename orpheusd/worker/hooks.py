"""Calls the hooks an agent registered with `@workspace.on_start` and `@workspace.on_session_end`.

Those of a session's end have a deadline and may not hurt anything: what they raise is logged. How a hook is called,
directly or on a loop, is handed in. It knows no channel.
"""

import asyncio
import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from orpheusd.worker import failures
from orpheusd.worker.holdings import Holdings
from workspace import TimedOut, hooks

#: What one hook of a session's end may take, and all of them together when the worker leaves: less than the grace
#: after which it is killed.
HOOK_LIMIT_S = 5.0
DRAIN_LIMIT_S = 1.5

#: Less than the daemon's own deadline for a start, so that the error names the hook.
START_LIMIT_S = 25.0

#: Calls a hook that has returned a coroutine to its end within seconds.
Finish = Callable[[Any, float], None]


def start(finish: Finish) -> None:
    """Call the hooks of the worker's start. What they raise is the caller's."""
    for hook in hooks.start_hooks:
        _call(hook, (), finish, START_LIMIT_S)


class Ends:
    """Ends the sessions of a worker: one that is over, or all that it holds when it leaves."""

    def __init__(self, finish: Finish, holdings: Holdings) -> None:
        self._finish = finish
        self._holdings = holdings

    def end(self, session_id: str, reason: str, limit_s: float = HOOK_LIMIT_S) -> None:
        for hook in hooks.session_end_hooks:
            try:
                _call(hook, (session_id, reason), self._finish, limit_s)
            except (Exception, TimedOut, SystemExit) as error:
                print(f"on_session_end raised:\n{failures.traceback_text(error)}", file=sys.stderr)

    def drain(self) -> None:
        """The worker leaves: its sessions end here, as many as the time allows."""
        if not hooks.session_end_hooks:
            return
        deadline = time.monotonic() + DRAIN_LIMIT_S
        sessions = self._holdings.sessions
        while sessions:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                print(f"no time for on_session_end of {len(sessions)} more sessions", file=sys.stderr)
                return
            self.end(sessions.popitem()[0], "drain", left_s)


def finish_alone(coroutine: Any, limit_s: float) -> None:
    """For a worker without a loop of its own."""
    asyncio.run(asyncio.wait_for(coroutine, limit_s))


def _call(hook: Callable[..., Any], arguments: tuple[Any, ...], finish: Finish, limit_s: float) -> None:
    with _alarm(limit_s):
        returned = hook(*arguments)
        if inspect.iscoroutine(returned):
            finish(returned, limit_s)


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """Raise TimedOut in this thread after `limit_s`. The agent's own SIGALRM is put back."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimedOut(f"the hook took longer than {limit_s:.3g} s")

    earlier = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, earlier if earlier is not None else signal.SIG_DFL)
