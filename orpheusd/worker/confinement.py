"""What a template or a build gives up for good before it meets code of others: limits that all it starts inherits.

The walls around it were built by whoever started it; this is what can only be done from within.
"""

import os
import resource
from typing import NoReturn

from orpheusd.worker import landlock

#: The largest file an agent may write: a mistake that writes without end ends with an OSError, not with a full disk.
#: (Python ignores SIGXFSZ; a program that does not dies of it.)
FILE_LIMIT_BYTES = 1024 * 1024 * 1024

#: The same for a build, which unpacks what was built elsewhere; no wheel is larger than its /tmp, half of this.
BUILD_FILE_LIMIT_BYTES = 4 * 1024 * 1024 * 1024

#: The usual soft limit, whatever the daemon allows itself: select(2) and old libraries count on it.
OPEN_FILES = 1024

#: Processes and threads of all workers of a template: ten workers with a pool of threads each need some hundreds, and
#: the box has 32 768. The kernel counts them by sandbox, but does not hold a daemon that runs as root to it.
PROCESS_LIMIT = 4096


def become(sandboxed: bool, command: list[str]) -> NoReturn:
    """Confined, this process becomes `command`, a part of a build. Raises OSError."""
    confine(sandboxed, BUILD_FILE_LIMIT_BYTES)
    limit_open_files()
    os.execv(command[0], command)


def confine(sandboxed: bool, file_limit_bytes: int = FILE_LIMIT_BYTES) -> None:
    """For a process with one thread. Raises OSError."""
    os.umask(0o077)
    # a core has the secrets of every session in it, and takes as long to write as there is memory
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_limit_bytes)
    if sandboxed:
        # without a user namespace, this would count the processes of the daemon's user
        _limit(resource.RLIMIT_NPROC, PROCESS_LIMIT)
        if landlock.has_scopes():
            landlock.close_abstract_sockets()


def limit_open_files() -> None:
    """For whoever runs code of others; a template, which has pipes of many workers, does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def _limit(kind: int, wanted: int) -> None:
    """Set the soft and the hard limit, or leave those that are lower."""
    soft, hard = (wanted if limit == resource.RLIM_INFINITY else min(limit, wanted)
                  for limit in resource.getrlimit(kind))
    resource.setrlimit(kind, (soft, hard))
