"""The directories that a daemon has to itself: made, and held by a lock for as long as it lives."""

import fcntl
import os
from pathlib import Path
from typing import IO

from orpheusd.errors import AlreadyRunning, OrpheusError


def hold(directory: Path, held: int | None) -> IO[str]:
    """Holds the state or runtime directory while it is open. Raises AlreadyRunning when another daemon has it.

    `held` is the lock as an earlier image of this process had it: it was never anybody else's.
    """
    make_private(directory)
    path = directory / "lock"
    if held is not None and path.exists() and path.samefile(f"/proc/self/fd/{held}"):
        return os.fdopen(held, "a+")
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyRunning(f"orpheusd is already running on {directory} (pid {holder})") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o750 if directory.parts[:2] == ("/", "run") else 0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable for this user")
    except OSError as error:
        raise OrpheusError(
            "invalid-request", f"cannot use {directory}: {error}; name another one with --state-dir or --runtime-dir"
        ) from error
