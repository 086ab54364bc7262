"""Named locks that every worker of an agent shares, and every thread and task in them.

A lock is an flock on a file in the workspace's `.locks`: the kernel lets it go when its holder dies. It knows
nothing of what the lock protects, is not re-entrant, and keeps no order among those who wait. Who deletes `.locks`
while a lock is held lets the next one in.
"""

import fcntl
import hashlib
import os
import re
import time
from pathlib import Path
from types import TracebackType

from workspace import _runtime
from workspace.current import run

#: How long to wait for a lock outside a run, where no timeout of the run bounds it.
DEFAULT_TIMEOUT_S = 60.0
#: flock has no form that waits with a deadline, so it is tried again at these intervals.
FIRST_RETRY_S = 0.001
LAST_RETRY_S = 0.02

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}", re.ASCII)


def lock(name: str, timeout_s: float | None = None) -> "Lock":
    """The lock of that name, to be held in a `with` block, or `async with` in an async handler.

    Waits at most `timeout_s` seconds (by default as long as the run has left, 60 outside a run), then raises
    TimeoutError. In an async handler use `async with`: a plain `with` that has to wait stops the whole loop.
    """
    return Lock(name, timeout_s)


class Lock:
    """One named lock.

    Invariant: `_fd` is set by the holder alone, and only while the file it locks is the one `_file` names.
    """

    def __init__(self, name: str, timeout_s: float | None) -> None:
        self.name = name
        self.timeout_s = timeout_s
        stem = name if _PLAIN_NAME.fullmatch(name) else hashlib.sha256(os.fsencode(name)).hexdigest()
        self._file = _runtime.root() / ".locks" / f"{stem}.lock"
        self._fd: int | None = None

    def __enter__(self) -> "Lock":
        deadline, pause_s = self._deadline(), FIRST_RETRY_S
        while not self._try():
            time.sleep(self._pause(deadline, pause_s))
            pause_s = min(pause_s * 2, LAST_RETRY_S)
        return self

    async def __aenter__(self) -> "Lock":
        import asyncio  # noqa: PLC0415 - only async handlers pay for it

        deadline, pause_s = self._deadline(), FIRST_RETRY_S
        while not self._try():
            await asyncio.sleep(self._pause(deadline, pause_s))
            pause_s = min(pause_s * 2, LAST_RETRY_S)
        return self

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            # The file goes while it is still locked: who waits for it sees that it is gone and starts anew.
            if _same_file(fd, self._file):
                self._file.unlink(missing_ok=True)
            # A process forked meanwhile shares the lock, and closing alone would leave it there.
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _deadline(self) -> float:
        limit_s = self.timeout_s
        if limit_s is None:
            limit_s = run.remaining_s
        return time.monotonic() + (DEFAULT_TIMEOUT_S if limit_s is None else limit_s)

    def _pause(self, deadline: float, pause_s: float) -> float:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the lock {self.name!r} did not become free in time; another run holds it")
        return min(pause_s, left_s)

    def _try(self) -> bool:
        """Take the lock if it is free now."""
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(fd, self._file):
                self._fd, fd = fd, -1
                return True
        except BlockingIOError:
            pass
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._file, flags, 0o666)
        except FileNotFoundError:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._file, flags, 0o666)


def _same_file(fd: int, file: Path) -> bool:
    """Whether `file` still names the open file: a holder that left has removed it."""
    try:
        named = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)
