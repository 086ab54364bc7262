"""Descriptors in a process that agents share: which file one names, as an agent that closes and opens some may put
another in its place; and one more, when an agent has used up all."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def identity(fd: int) -> tuple[int, int] | None:
    """The same for the same file and for no other that is open at that time; None when nothing is."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def beyond_the_limit() -> Iterator[None]:
    """As many as the hard limit allows: an agent that leaks some has the soft one full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
