"""What the kernel of this box lets a supervisor do, found out by asking or trying. It judges nothing."""

import ctypes
import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from orpheusd.process.pidfds import SO_PEERPIDFD, PidFd

_SYS = Path("/proc/sys")

#: Of libseccomp, by which filters of system calls are made.
SECCOMP_LIBRARY = "libseccomp.so.2"


def setting(name: str) -> int | None:
    """A number below /proc/sys; None where this kernel has no such setting."""
    try:
        return int((_SYS / name).read_text())
    except (OSError, ValueError):
        return None


def user_namespaces() -> bool:
    """Whether a user without rights may make user namespaces, as far as the kernel's own settings go."""
    return (setting("user/max_user_namespaces") or 0) > 0 and setting("kernel/unprivileged_userns_clone") != 0


def apparmor_restricts() -> bool:
    """Ubuntu 23.10 and later: user namespaces have no rights unless an AppArmor profile gives them."""
    return setting("kernel/apparmor_restrict_unprivileged_userns") == 1


def pidfds() -> bool:
    """Linux 5.3."""
    return _works(lambda: PidFd(os.getpid()).close())


def peer_pidfds() -> bool:
    """Linux 6.5: the process at the other end of a socket without a moment in which its pid could be another's."""
    def ask() -> None:
        one, other = socket.socketpair()
        with one, other:
            os.close(one.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))

    return _works(ask)


def seccomp_filters() -> bool:
    """Whether the kernel can answer filtered calls with an error."""
    return _works(lambda: (_SYS / "kernel/seccomp/actions_avail").read_text().split().index("errno"))


def seccomp_library() -> bool:
    return _works(lambda: ctypes.CDLL(SECCOMP_LIBRARY))


def can_listen(host: str, port: int) -> bool:
    """Whether nobody else has the address."""
    def take() -> None:
        with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen()

    return _works(take)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True
