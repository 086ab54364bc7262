"""Which file a descriptor names: an agent that closes and opens some may put another one in its place."""

import os


def identity(fd: int) -> tuple[int, int] | None:
    """The same for the same file and for no other that is open at that time; None when nothing is."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
