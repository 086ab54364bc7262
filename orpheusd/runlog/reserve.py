"""Space held back on the disk, given up when the disk is full, so that the runs under way can still be recorded."""

import os
import sqlite3
from pathlib import Path


def disk_is_full(error: sqlite3.Error) -> bool:
    """Whether it says that there is no space: in so many words, or because the WAL's shared memory could not grow."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


class Reserve:
    """Invariant: `held` means that the file is there in its full size."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.held = False

    def take(self) -> bool:
        """Claim the space. False when the disk does not have it; nothing is left there then."""
        if self.size_bytes == 0 or self.held:
            self.held = True
            return True
        fd = -1
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.posix_fallocate(fd, 0, self.size_bytes)
        except OSError:
            self.give_up()
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        self.held = True
        return True

    def give_up(self) -> None:
        self.held = False
        self.path.unlink(missing_ok=True)
