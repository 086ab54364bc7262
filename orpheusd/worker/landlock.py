"""Keeps an agent from the abstract Unix sockets of the host, which an agent that has the network shares with it.

They have no file, so that no mount hides them, and no seccomp filter sees an address. Landlock can close them since
Linux 6.12. The daemon asks here what the kernel can do; nothing else of Landlock is used, as the mounts do it better.
"""

import ctypes
import os

# The same numbers on every architecture (landlock(7)).
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1
#: The version that brought scopes.
SCOPES_VERSION = 6


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


def has_scopes() -> bool:
    """Whether `close_abstract_sockets` works on this kernel."""
    version: int = _libc().syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    return version >= SCOPES_VERSION


def close_abstract_sockets() -> None:
    """From now on this process and what it starts reach only abstract sockets that were bound among them.

    For a process with one thread and no_new_privs. Raises OSError.
    """
    ruleset = _Ruleset(scoped=LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    fd = _checked(_libc().syscall(
        SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0))
    try:
        _checked(_libc().syscall(SYS_LANDLOCK_RESTRICT_SELF, fd, 0))
    finally:
        os.close(fd)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
